// SPDX-License-Identifier: GPL-2.0
/*
 * What the scripts beside the network tests do before they run them: a network namespace of its own, in which the
 * loopback is up, with the settings of -DSYSCTLS="name=value;name=value". And what some tests call ip and sysctl for,
 * by a shell that no guest has: system() does as much of it as they use.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SYSCTLS
#define SYSCTLS ""
#endif

struct address6 {
	struct in6_addr address;
	unsigned int prefix;
	int index;
};

static int set(int family, unsigned long what, void *argument)
{
	int fd = socket(family, SOCK_DGRAM, 0), failed = fd < 0 || ioctl(fd, what, argument);

	if (fd >= 0)
		close(fd);
	return failed;
}

static int up(const char *device)
{
	struct ifreq request = { .ifr_flags = IFF_UP | IFF_RUNNING };

	strncpy(request.ifr_name, device, IFNAMSIZ - 1);
	return set(AF_INET, SIOCSIFFLAGS, &request);
}

static int set_mtu(const char *device, int mtu)
{
	struct ifreq request = { .ifr_mtu = mtu };

	strncpy(request.ifr_name, device, IFNAMSIZ - 1);
	return set(AF_INET, SIOCSIFMTU, &request);
}

static int add_address(const char *device, const char *text, int prefix)
{
	struct address6 six = { .prefix = prefix, .index = if_nametoindex(device) };
	struct ifreq request = { 0 };
	struct sockaddr_in *four = (struct sockaddr_in *)&request.ifr_addr;

	if (inet_pton(AF_INET6, text, &six.address) == 1)
		return set(AF_INET6, SIOCSIFADDR, &six);
	/* Beside the one that is there. */
	snprintf(request.ifr_name, IFNAMSIZ, "%.10s:1", device);
	four->sin_family = AF_INET;
	if (inet_pton(AF_INET, text, &four->sin_addr) != 1 || set(AF_INET, SIOCSIFADDR, &request))
		return 1;
	four->sin_addr.s_addr = htonl(~0u << (32 - prefix));
	return set(AF_INET, SIOCSIFNETMASK, &request);
}

static int set_sysctl(const char *setting)
{
	char path[256] = "/proc/sys/", *at = path + strlen(path);
	const char *value = strchr(setting, '=');
	int fd, failed;

	if (!value || value - setting > 200)
		return 1;
	for (; setting < value; setting++)
		*at++ = *setting == '.' ? '/' : *setting;
	fd = open(path, O_WRONLY);
	value++;
	failed = fd < 0 || write(fd, value, strlen(value)) < 0;
	if (failed)
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return failed;
}

int system(const char *command)
{
	char device[IFNAMSIZ], text[256];
	int number, failed;

	if (sscanf(command, "ip link set dev %15s mtu %d", device, &number) == 2)
		failed = set_mtu(device, number);
	else if (!strcmp(command, "ip link set lo up") || !strcmp(command, "ip link set dev lo up"))
		failed = up("lo");
	else if (sscanf(command, "ip addr add dev %15s %63[^/]/%d", device, text, &number) == 3)
		failed = add_address(device, text, number);
	else if (sscanf(command, "sysctl -w %255s", text) == 1)
		failed = set_sysctl(text);
	else
		failed = 127;
	if (failed)
		fprintf(stderr, "%s: %s\n", command, failed == 127 ? "there is no shell" : strerror(errno));
	return failed << 8;
}

__attribute__((constructor(200))) static void own_namespace(void)
{
	char settings[] = SYSCTLS, *rest = settings, *setting;

	if (unshare(CLONE_NEWNET) || up("lo")) {
		perror("a network namespace");
		_exit(1);
	}
	while ((setting = strsep(&rest, ";")))
		if (*setting && set_sysctl(setting))
			_exit(1);
}
