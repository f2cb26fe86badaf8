// SPDX-License-Identifier: GPL-2.0
/*
 * The other end of tests that only send: whatever arrives at port 8000, by UDP or TCP, is read and forgotten.
 */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT 8000

static void *swallow(void *socket)
{
	static __thread char buffer[1 << 17];
	int fd = (int)(long)socket;

	for (;;) {
		int from = accept(fd, NULL, NULL);

		/* A socket that cannot accept is one for datagrams. */
		while (recv(from < 0 ? fd : from, buffer, sizeof(buffer), 0) > 0)
			;
		if (from >= 0)
			close(from);
	}
	return NULL;
}

__attribute__((constructor(300))) static void open_sink(void)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(PORT) };
	int types[] = { SOCK_DGRAM, SOCK_STREAM }, i;

	for (i = 0; i < 2; i++) {
		int fd = socket(AF_INET6, types[i], 0);
		pthread_t thread;

		if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) ||
		    (types[i] == SOCK_STREAM && listen(fd, 8)) ||
		    pthread_create(&thread, NULL, swallow, (void *)(long)fd)) {
			perror("a sink");
			_exit(1);
		}
	}
}
