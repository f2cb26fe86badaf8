#include <linux/sched.h>
/* Schedules. */
