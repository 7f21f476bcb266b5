// SPDX-License-Identifier: GPL-2.0-only
/*
 * dmem_stall_probe: does while it is being loaded what no driver may do, for as
 * many seconds as its parameters say: the control for cases that want no word
 * from the kernel's watchdogs. It never stays (ECANCELED).
 */

#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>

static unsigned int cpu;
module_param(cpu, uint, 0400);
MODULE_PARM_DESC(cpu, "how long it holds a CPU");

static unsigned int sleep;
module_param(sleep, uint, 0400);
MODULE_PARM_DESC(sleep, "how long it sleeps where no signal reaches it");

static void __init spin(unsigned int seconds)
{
	unsigned long until = jiffies + seconds * HZ;

	while (time_before(jiffies, until))
		cpu_relax();
}

static int __init stall_init(void)
{
	preempt_disable();
	spin(cpu);
	preempt_enable();

	schedule_timeout_uninterruptible(sleep * HZ);
	return -ECANCELED;
}

module_init(stall_init);

MODULE_AUTHOR("The daxdmem authors");
MODULE_DESCRIPTION("Holds a CPU or a task for too long");
MODULE_LICENSE("GPL");
