#define PR_FAKE 1
