#include <linux/sched.h>
/* More of them. */
