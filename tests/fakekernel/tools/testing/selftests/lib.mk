selfdir = $(realpath $(dir $(filter %/lib.mk,$(MAKEFILE_LIST))))
TEST_GEN_PROGS := $(patsubst %,$(OUTPUT)/%,$(TEST_GEN_PROGS))

all: $(TEST_GEN_PROGS)

emit_tests:
	@for test in $(TEST_GEN_PROGS) $(TEST_PROGS); do echo "$(COLLECTION):`basename $$test`"; done

$(OUTPUT)/%: %.c $(selfdir)/kselftest.h
	@echo "  CC      $*"
	@$(CC) $(CFLAGS) $(KHDR_INCLUDES) $(USERLDFLAGS) $(LDFLAGS) -o $@ $<
