// SPDX-License-Identifier: GPL-2.0
//! Which VM runs when: up to two side by side, within the memory the host may give.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::catalog::Case;
use crate::machine::Machine;
use crate::report::{Took, Verdict};
use crate::session::{self, Context};

/// VMs side by side, if nobody wants fewer: the emulation uses a thread per virtual CPU.
pub const VMS: usize = 2;
/// MiB all VMs together may touch on a machine that has more.
const MEMORY: u64 = 16 * 1024;
/// MiB left to everything else.
const SPARE: u64 = 1024;

/// The cases of one machine, those that want a VM for themselves last.
struct Queue {
    machine: &'static Machine,
    cases: VecDeque<Case>,
    vms: usize,
}

impl Queue {
    /// Whether one more VM would find work: those that run take one more case each, at least.
    fn wants_vm(&self) -> bool {
        self.cases.len() > self.vms
    }

    /// Seconds of work for one more VM, at worst.
    fn work(&self) -> u64 {
        let limits: u64 = self.cases.iter().map(|case| case.limit).sum();
        limits / (self.vms as u64 + 1)
    }
}

struct State {
    queues: Vec<Queue>,
    memory: u64,
    /// MiB a VM takes beyond its machine's cost.
    extra: u64,
}

impl State {
    /// Takes the machine with the most work that fits into the memory left; one that leaves little memory for others
    /// before all, while there are others that need little.
    fn choose(&mut self) -> Option<&'static Machine> {
        let (memory, extra) = (self.memory, self.extra);
        let fits = |queue: &&mut Queue| queue.wants_vm() && queue.machine.cost + extra <= memory;
        let queue = self
            .queues
            .iter_mut()
            .filter(fits)
            .max_by_key(|queue| (queue.machine.cost > MEMORY / 2, queue.work()))?;
        queue.vms += 1;
        self.memory -= queue.machine.cost + extra;
        Some(queue.machine)
    }
}

struct Schedule {
    state: Mutex<State>,
    changed: Condvar,
}

/// Runs all cases; every one has its verdict in the report afterwards.
pub fn run(context: &Context<'_>, cases: Vec<Case>) {
    let queues = queues(cases);
    // One VM at a time is the least that has to fit; a machine too small even for that can only try.
    let extra = context.lab.choice.cost();
    let least = queues.iter().map(|queue| queue.machine.cost + extra).max();
    let memory = MEMORY.min(available()).max(least.unwrap_or(0));
    let schedule = Schedule {
        state: Mutex::new(State {
            queues,
            memory,
            extra,
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..context.vms {
            scope.spawn(|| schedule.work(context));
        }
    });
}

/// MiB this machine can give.
fn available() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    (kib.unwrap_or(0) / 1024).saturating_sub(SPARE)
}

fn queues(cases: Vec<Case>) -> Vec<Queue> {
    let mut queues: Vec<Queue> = Vec::new();
    let (alone, shared): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.fresh);
    for case in shared.into_iter().chain(alone) {
        match queues
            .iter_mut()
            .find(|queue| queue.machine.name == case.machine.name)
        {
            Some(queue) => queue.cases.push_back(case),
            None => queues.push(Queue {
                machine: case.machine,
                cases: VecDeque::from([case]),
                vms: 0,
            }),
        }
    }
    queues
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A worker that panicked leaves the queues whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, context: &Context<'_>) {
        while let Some(machine) = self.take_machine() {
            let begin = Instant::now();
            let result = session::run(context, machine, |used| self.take_case(machine, used));
            if let Err(reason) = result {
                self.give_up(context, machine, &reason, begin);
            }
            self.give_back(machine);
        }
    }

    /// The machine to boot next; waits while memory is short. `None`: no VM is wanted any more.
    fn take_machine(&self) -> Option<&'static Machine> {
        let mut state = self.lock();
        loop {
            if let Some(machine) = state.choose() {
                return Some(machine);
            }
            if !state.queues.iter().any(Queue::wants_vm) {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, machine: &Machine) {
        let mut state = self.lock();
        state.memory += machine.cost + state.extra;
        if let Some(queue) = state
            .queues
            .iter_mut()
            .find(|queue| queue.machine.name == machine.name)
        {
            queue.vms -= 1;
        }
        self.changed.notify_all();
    }

    /// The next case for a VM that has run one before, or not.
    fn take_case(&self, machine: &Machine, used: bool) -> Option<Case> {
        let mut state = self.lock();
        let queue = state
            .queues
            .iter_mut()
            .find(|queue| queue.machine.name == machine.name)?;
        if used && queue.cases.front()?.fresh {
            return None;
        }
        queue.cases.pop_front()
    }

    /// A machine that does not come up fails everything that waits for it.
    fn give_up(&self, context: &Context<'_>, machine: &Machine, reason: &str, begin: Instant) {
        while let Some(case) = self.take_case(machine, false) {
            let verdict = Verdict::Fail(reason.to_owned());
            context
                .report
                .verdict(&case.name, verdict, Took::since(begin));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;

    fn case(machine: &str, limit: u64, fresh: bool) -> Case {
        Case {
            name: format!("{machine}-{limit}"),
            machine: machine::find(machine).unwrap(),
            limit,
            fresh,
            hidden: false,
            sampled: false,
            shows: String::new(),
        }
    }

    fn choices(cases: Vec<Case>, memory: u64) -> Vec<&'static str> {
        let mut state = State {
            queues: queues(cases),
            memory,
            extra: 0,
        };
        std::iter::from_fn(|| state.choose().map(|machine| machine.name)).collect()
    }

    #[test]
    fn a_single_case_gets_a_single_vm() {
        assert_eq!(choices(vec![case("std", 20, false)], MEMORY), ["std"]);
    }

    #[test]
    fn most_work_goes_first_and_memory_bounds_what_runs() {
        let cases = || {
            vec![
                case("small", 5, false),
                case("std", 20, false),
                case("std", 30, false),
            ]
        };
        assert_eq!(choices(cases(), MEMORY), ["std", "std", "small"]);
        let one_of_each = machine::find("std").unwrap().cost + machine::find("small").unwrap().cost;
        assert_eq!(choices(cases(), one_of_each), ["std", "small"]);
    }

    #[test]
    fn the_largest_machine_goes_first_beside_a_small_one() {
        let cases =
            ["std", "plan-hole", "region12", "numa"].map(|machine| case(machine, 20, false));
        assert_eq!(choices(cases.into(), MEMORY), ["region12", "plan-hole"]);
    }

    #[test]
    fn cases_that_want_a_vm_for_themselves_come_last() {
        let queues = queues(vec![case("std", 1, true), case("std", 2, false)]);
        let limits: Vec<u64> = queues[0].cases.iter().map(|case| case.limit).collect();
        assert_eq!(limits, [2, 1]);
    }
}
