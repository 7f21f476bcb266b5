// SPDX-License-Identifier: GPL-2.0
//! One VM from boot to end: hands cases to the agent, answers its requests, and ends the VM when it must.

use std::time::{Duration, Instant};

use crate::catalog::Case;
use crate::console::Console;
use crate::lab::{Lab, Result};
use crate::machine::Machine;
use crate::memory_file::MemoryFile;
use crate::report::{Report, Took, Verdict};
use crate::vm::{Event, Vm};
use crate::walk;

/// From QEMU's start to the agent's first request. The largest machine takes 20 s on a slow host.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// A case past its limit that still says something is slow, not hung; this many limits are enough for anything.
const LIMITS: u32 = 3;
/// Silence that makes a case past its limit hung.
const SILENCE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(100);
const TAIL: usize = 30;

/// What a session needs from outside.
pub struct Context<'a> {
    /// Where things are.
    pub lab: &'a Lab,
    /// Initramfs of the VMs.
    pub initramfs: &'a MemoryFile,
    /// Where lines and verdicts go.
    pub report: &'a Report,
    /// Multiplies all time limits.
    pub patience: u32,
    /// Cases that sample try one of so many points.
    pub every: u32,
    /// So many VMs side by side.
    pub vms: usize,
    /// Run last in every VM that came to its end in order.
    pub closing: Option<&'a Case>,
}

/// The running case.
struct Running {
    case: Case,
    begin: Instant,
    /// [`Vm::waited`] when it began.
    waited: Duration,
    /// [`Session::cpu`] when it began.
    cpu: Duration,
    last_sign: Instant,
    /// How many times it had the VM reset.
    resets: u32,
    /// Set by the kernel's distress.
    deadline: Option<Instant>,
}

/// Why the VM ended.
enum End {
    /// There is nothing left to do in it.
    Done,
    /// It, or the case in it, is beyond help.
    Broken(String),
}

/// Boots a VM and runs cases in it until `next` has no more or the VM is not to be trusted any more.
///
/// `next` is told whether the VM has run a case before, and gives the next case for it. An error means that
/// the machine did not come up at all.
pub fn run(
    context: &Context<'_>,
    machine: &Machine,
    mut next: impl FnMut(bool) -> Option<Case>,
) -> Result<()> {
    let begin = Instant::now();
    let mut vm = boot(context, machine, "")?;
    let mut session = Session {
        context,
        machine,
        begin,
        console: Console::default(),
        running: None,
        used: false,
        spoilt: false,
        closing: None,
        resetting: false,
        boot_deadline: Some(begin + BOOT_LIMIT * context.patience),
        cpu: Duration::ZERO,
    };
    let end = session.serve(&mut vm, &mut next);
    session.cpu += vm.cpu();
    drop(vm);
    match (end, session.running.take()) {
        (End::Done, None) => Ok(()),
        (End::Done, Some(running)) => {
            session.fail(&running, "the VM ended without a verdict".to_owned());
            Ok(())
        }
        (End::Broken(reason), Some(running)) => {
            session.fail(&running, reason);
            Ok(())
        }
        (End::Broken(reason), None) if session.used => {
            // The cases have their verdicts; the VM broke between two of them.
            context.report.diagnostic(
                machine.name,
                &format!("the VM broke after its last case: {reason}"),
            );
            Ok(())
        }
        (End::Broken(reason), None) => {
            for line in session.console.tail(TAIL) {
                context
                    .report
                    .diagnostic(machine.name, &format!("    {line}"));
            }
            Err(format!(
                "machine {} did not come up: {reason}",
                machine.name
            ))
        }
    }
}

fn boot(context: &Context<'_>, machine: &Machine, parameters: &str) -> Result<Vm> {
    let (lab, initramfs) = (context.lab, context.initramfs);
    let parameters = format!(" dmem.every={}{parameters}", context.every);
    Vm::boot(lab, machine, initramfs, context.patience, &parameters)
}

struct Session<'a> {
    context: &'a Context<'a>,
    machine: &'a Machine,
    begin: Instant,
    console: Console,
    running: Option<Running>,
    used: bool,
    /// A case failed here, or wanted the VM for itself: nothing else runs in it, but for the closing case.
    spoilt: bool,
    /// Still to be run; none in a VM that has run no case yet or in which one failed.
    closing: Option<Case>,
    /// Between a case's wish for a reset and the agent's return.
    resetting: bool,
    boot_deadline: Option<Instant>,
    /// Processor time of the VMs that are gone.
    cpu: Duration,
}

impl Session<'_> {
    fn serve(&mut self, vm: &mut Vm, next: &mut impl FnMut(bool) -> Option<Case>) -> End {
        loop {
            let event = vm.next(TICK);
            if let (Some(running), Some(_)) = (&mut self.running, &event) {
                running.last_sign = Instant::now();
            }
            let end = match event {
                Some(Event::Console(line)) => {
                    self.on_console(line);
                    None
                }
                Some(Event::Control(line)) => self.on_control(vm, &line, next),
                Some(Event::Ended) => {
                    let reason = self
                        .console
                        .reason()
                        .unwrap_or("the VM ended without a verdict");
                    Some(End::Broken(reason.to_owned()))
                }
                None => None,
            };
            if let Some(end) = end {
                return end;
            }
            if let Some(end) = self.overdue(vm) {
                self.tell_where(vm);
                return end;
            }
        }
    }

    fn on_console(&mut self, line: String) {
        if let (Some(distress), Some(running)) = (self.console.push(line), &mut self.running) {
            running.deadline = Some(Instant::now() + distress.grace() * self.context.patience);
        }
    }

    fn on_control(
        &mut self,
        vm: &mut Vm,
        line: &str,
        next: &mut impl FnMut(bool) -> Option<Case>,
    ) -> Option<End> {
        if let Some(request) = line.strip_prefix('@') {
            match request {
                "next" => return self.on_next(vm, next),
                "reset" => return self.on_reset(vm),
                "kexec" => return self.begin_again().or_else(|| reached(vm.reply(""))),
                "crash" => {
                    self.console.expect_panic();
                    return self.begin_again().or_else(|| reached(vm.reply("")));
                }
                _ => {}
            }
            if let Some(parameters) = request.strip_prefix("boot ") {
                return self.on_boot(vm, parameters);
            }
            let answer = answer(vm, request)
                .and_then(|text| vm.reply(&text).map_err(|error| error.to_string()));
            return answer
                .err()
                .map(|error| End::Broken(format!("request '{request}': {error}")));
        }
        let Some(running) = &self.running else {
            self.context.report.diagnostic("agent", line);
            return None;
        };
        match parse_verdict(line) {
            None => {
                let text = line
                    .strip_prefix('#')
                    .map_or(line, |text| text.strip_prefix(' ').unwrap_or(text));
                self.context.report.diagnostic(&running.case.name, text);
            }
            Some((name, verdict)) if name == running.case.name => self.on_verdict(vm, verdict),
            Some((name, _)) => {
                return Some(End::Broken(format!(
                    "the agent gave a verdict on '{name}' instead"
                )))
            }
        }
        None
    }

    fn on_next(&mut self, vm: &mut Vm, next: &mut impl FnMut(bool) -> Option<Case>) -> Option<End> {
        if self.boot_deadline.take().is_some() {
            let seconds = self.begin.elapsed().as_secs_f64();
            let name = self.machine.name;
            let cpu = vm.cpu().as_secs_f64();
            let text = format!("machine {name} is up after {seconds:.1} s, cpu {cpu:.1} s");
            self.context.report.diagnostic(name, &text);
        }
        if let Some(running) = &self.running {
            if !self.resetting {
                return Some(End::Broken("the agent gave no verdict".to_owned()));
            }
            self.resetting = false;
            if let Err(error) = vm.booted_again() {
                return Some(End::Broken(error));
            }
            let again = format!("{} {}", running.case.name, running.resets);
            return reached(vm.reply(&again));
        }
        let case = if self.spoilt { None } else { next(self.used) };
        let (case, last) = match (case, self.closing.take()) {
            (Some(case), closing) => {
                let last = case.fresh;
                self.closing = closing;
                (case, last)
            }
            (None, Some(closing)) => (closing, true),
            (None, None) => return Some(End::Done),
        };
        if !self.used {
            self.closing = self.context.closing.cloned();
        }
        if let Some(end) = reached(vm.reply(&format!("{} 0", case.name))) {
            return Some(end);
        }
        self.used = true;
        self.spoilt = last;
        let now = Instant::now();
        self.running = Some(Running {
            case,
            begin: now,
            waited: vm.waited(),
            cpu: self.cpu + vm.cpu(),
            last_sign: now,
            resets: 0,
            deadline: None,
        });
        None
    }

    /// The case wants to go on in the next boot of this VM, with the memory as it is.
    fn on_reset(&mut self, vm: &mut Vm) -> Option<End> {
        let broken = self.begin_again();
        if broken.is_some() {
            return broken;
        }
        let error = vm.reset().err()?;
        Some(End::Broken(format!("resetting the VM: {error}")))
    }

    /// The case wants to go on in another VM like this one, with further kernel parameters.
    fn on_boot(&mut self, vm: &mut Vm, parameters: &str) -> Option<End> {
        let broken = self.begin_again();
        if broken.is_some() {
            return broken;
        }
        self.cpu += vm.cpu();
        // Two at a time are more than the schedule has reckoned with.
        vm.power_off();
        match boot(self.context, self.machine, &format!(" {parameters}")) {
            Ok(next) => {
                *vm = next;
                None
            }
            Err(error) => Some(End::Broken(format!("booting again: {error}"))),
        }
    }

    fn begin_again(&mut self) -> Option<End> {
        let Some(running) = &mut self.running else {
            return Some(End::Broken(
                "the agent wants a reset without a case".to_owned(),
            ));
        };
        running.resets += 1;
        self.resetting = true;
        self.begin = Instant::now();
        self.boot_deadline = Some(self.begin + BOOT_LIMIT * self.context.patience);
        None
    }

    fn on_verdict(&mut self, vm: &Vm, verdict: Verdict) {
        let Some(running) = self.running.take() else {
            return;
        };
        match verdict {
            Verdict::Fail(reason) => self.fail(&running, reason),
            verdict => {
                let took = Took {
                    time: running.begin.elapsed(),
                    cpu: (self.cpu + vm.cpu()).saturating_sub(running.cpu),
                };
                let counted = self
                    .context
                    .report
                    .verdict(&running.case.name, verdict, took);
                if matches!(counted, Verdict::Fail(_)) {
                    self.spoilt = true;
                    self.closing = None;
                }
            }
        }
    }

    fn overdue(&self, vm: &Vm) -> Option<End> {
        let now = Instant::now();
        if self
            .boot_deadline
            .is_some_and(|deadline| now > deadline + vm.waited())
        {
            return Some(End::Broken(
                self.console
                    .reason()
                    .unwrap_or("no sign of the agent in time")
                    .to_owned(),
            ));
        }
        let running = self.running.as_ref()?;
        if running.deadline.is_some_and(|deadline| now > deadline) {
            return Some(End::Broken(
                self.console
                    .reason()
                    .unwrap_or("the kernel is in distress")
                    .to_owned(),
            ));
        }
        let limit = Duration::from_secs(running.case.limit) * self.context.patience;
        let age = now - running.begin;
        if age <= limit {
            return None;
        }
        let age = age.saturating_sub(vm.waited().saturating_sub(running.waited));
        let silent = now - running.last_sign > SILENCE * self.context.patience;
        if age > limit * LIMITS || (age > limit && silent) {
            let (age, limit) = (age.as_secs(), limit.as_secs());
            return Some(End::Broken(format!(
                "hung: no verdict after {age} s (limit {limit} s)"
            )));
        }
        None
    }

    /// Says where each CPU is: of a kernel that hangs with interrupts off nothing else is heard.
    fn tell_where(&self, vm: &mut Vm) {
        let running = self.running.as_ref();
        let name = running.map_or(self.machine.name, |running| &running.case.name);
        for cpu in 0..self.machine.cpus {
            let (said, is_stuck) = match vm.qmp.monitor("info registers", cpu) {
                Ok(registers) => (registers, false),
                Err(error) => (error, true),
            };
            let line = said.lines().find(|line| line.starts_with("RIP="));
            let text = format!("CPU {cpu}: {}", line.unwrap_or(&said));
            self.context.report.diagnostic(name, &text);
            if is_stuck {
                return;
            }
        }
    }

    fn fail(&mut self, running: &Running, reason: String) {
        self.spoilt = true;
        self.closing = None;
        let name = &running.case.name;
        let report = self.context.report;
        let directory = self.context.lab.run.join(name);
        for line in self.console.tail(TAIL) {
            report.diagnostic(name, &format!("    {line}"));
        }
        match self.console.save(&directory) {
            Ok(()) => report.diagnostic(
                name,
                &format!("whole console in {}/console.log", directory.display()),
            ),
            Err(error) => report.diagnostic(name, &error),
        }
        let took = Took::since(running.begin);
        report.verdict(name, Verdict::Fail(reason), took);
    }
}

fn answer(vm: &mut Vm, request: &str) -> Result<String> {
    if let Some(line) = request.strip_prefix("hmp ") {
        return vm.qmp.monitor(line, 0);
    }
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    if let Some(rest) = request.strip_prefix("strike ") {
        let mut words = rest.splitn(3, ' ');
        let cpu = words.next().and_then(|word| word.parse().ok());
        return match (cpu, words.next().and_then(number), words.next()) {
            (Some(cpu), Some(r15), Some(command)) => walk::strike(&mut vm.qmp, cpu, r15, command),
            _ => Err("bad numbers".to_owned()),
        };
    }
    let words: Vec<&str> = request.split(' ').collect();
    match words[..] {
        [look @ ("tlb" | "kernel"), cpu, low, high] => {
            let (Ok(cpu), Some(low), Some(high)) = (cpu.parse(), number(low), number(high)) else {
                return Err("bad numbers".to_owned());
            };
            match look {
                "tlb" => walk::user_part(&mut vm.qmp, cpu, low, high),
                _ => walk::kernel_half(&mut vm.qmp, cpu, low, high),
            }
        }
        _ => Err("no such request".to_owned()),
    }
}

/// The end of the VM, if the reply did not get through.
fn reached(reply: std::io::Result<()>) -> Option<End> {
    let error = reply.err()?;
    Some(End::Broken(format!("the agent cannot be reached: {error}")))
}

/// `ok - NAME # …`, `ok - NAME # SKIP reason`, `not ok - NAME # reason`.
fn parse_verdict(line: &str) -> Option<(&str, Verdict)> {
    let (good, rest) = match line.strip_prefix("ok - ") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("not ok - ")?),
    };
    let (name, remark) = rest.split_once(" # ").unwrap_or((rest, ""));
    let verdict = match (good, remark.strip_prefix("SKIP ")) {
        (true, None) => Verdict::Pass,
        (true, Some(reason)) => Verdict::Skip(reason.to_owned()),
        (false, _) => Verdict::Fail(remark.to_owned()),
    };
    Some((name, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_told_from_diagnostics() {
        assert_eq!(
            parse_verdict("ok - a # time 1.0s"),
            Some(("a", Verdict::Pass))
        );
        assert_eq!(
            parse_verdict("ok - a # SKIP no disk"),
            Some(("a", Verdict::Skip("no disk".into())))
        );
        assert_eq!(
            parse_verdict("not ok - a # x # y"),
            Some(("a", Verdict::Fail("x # y".into())))
        );
        assert_eq!(parse_verdict("# ok - a"), None);
    }
}
