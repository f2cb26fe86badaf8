// SPDX-License-Identifier: GPL-2.0
/*
 * Linked to every selftest of the pinned kernel: its output is a pipe here, and what is buffered when a program forks
 * would come out twice. kselftest's own runner has the programs write lines for the same reason.
 */
#include <stdio.h>

__attribute__((constructor)) static void write_lines(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
}
