// SPDX-License-Identifier: GPL-2.0
//! Sequences of operations whose outcome is plain.

use super::*;
use crate::fuzz::op::PAGE;

const RW: Prot = Prot {
    read: true,
    write: true,
};
const NONE: Prot = Prot {
    read: false,
    write: false,
};
const ENDS: Touch = Touch {
    page: 0,
    slot: 1,
    write: None,
};

/// Process 0 has device 0, two ranges of a block each, open as 0 and mapped at the arena's start.
fn model() -> Model {
    let mut model = Model::new(false);
    done(&mut model, create());
    done(&mut model, bind(Policy::Release));
    done(&mut model, open(0));
    done(&mut model, map(0, 2 * BLOCK, 0));
    model
}

fn create() -> Op {
    Op::Create {
        device: 0,
        align: PAGE,
        parts: vec![(9, 1), (4, 1)],
    }
}

fn bind(policy: Policy) -> Op {
    Op::Bind { device: 0, policy }
}

fn open(file: usize) -> Op {
    Op::Open {
        who: 0,
        file,
        device: 0,
        writable: true,
        nonblock: false,
    }
}

fn map(at: u64, pages: u64, offset: u64) -> Op {
    Op::Map {
        who: 0,
        file: 0,
        span: Span { at, pages },
        offset,
        prot: RW,
        place: Place::Fixed,
    }
}

fn steps(model: &mut Model, op: Op) -> Vec<Want> {
    assert!(model.applies(&op), "{op:?}");
    model.apply(&op).steps
}

fn done(model: &mut Model, op: Op) {
    assert_eq!(steps(model, op), [Want::DONE]);
}

fn errno(model: &mut Model, op: Op, errno: i32) {
    assert_eq!(steps(model, op), [Want::Is(Seen::Errno(errno))]);
}

fn touch(model: &mut Model, who: usize, page: u64, write: Option<u64>) -> Want {
    let touches = vec![Touch {
        page,
        write,
        ..ENDS
    }];
    steps(model, Op::Touch { who, touches }).remove(0)
}

fn word(word: u64) -> Want {
    Want::Is(Seen::Word(word))
}

fn fault(signal: i32, code: i32) -> Want {
    Want::Is(Seen::Fault(signal, code))
}

#[test]
fn a_word_is_the_same_through_every_mapping_process_and_tracer() {
    let mut model = model();
    assert_eq!(touch(&mut model, 0, BLOCK, None), word(0));
    assert_eq!(touch(&mut model, 0, BLOCK, Some(7)), Want::DONE);
    done(&mut model, map(5000, 3, BLOCK - 1));
    assert_eq!(touch(&mut model, 0, 5001, None), word(7));
    done(&mut model, Op::Fork { who: 0, child: 2 });
    let whole = Span { at: 0, pages: 6000 };
    let unmap = Op::Unmap {
        who: 0,
        span: whole,
    };
    done(&mut model, unmap);
    assert_eq!(touch(&mut model, 2, 5001, Some(8)), Want::DONE);
    assert_eq!(touch(&mut model, 2, BLOCK, None), word(8));
    let peek = Op::Peek {
        who: 2,
        at: 5002 * PAGE - 8,
        bytes: 16,
    };
    let wanted = [Want::Is(Seen::Number(16)), word(8), word(0)];
    assert_eq!(steps(&mut model, peek), wanted);
}

#[test]
fn after_unbind_there_is_sigbus_and_a_quarantine_until_the_last_is_gone() {
    let mut model = model();
    touch(&mut model, 0, 3, Some(7));
    done(&mut model, Op::Fork { who: 0, child: 1 });
    done(&mut model, Op::Unbind { device: 0 });
    assert_eq!(
        touch(&mut model, 0, 3, None),
        fault(libc::SIGBUS, BUS_ADRERR)
    );
    errno(&mut model, open(1), libc::ENXIO);
    errno(&mut model, bind(Policy::Never), libc::EBUSY);
    done(&mut model, Op::Close { who: 0, file: 0 });
    done(&mut model, Op::Close { who: 1, file: 0 });
    let whole = Span {
        at: 0,
        pages: 2 * BLOCK,
    };
    done(
        &mut model,
        Op::Unmap {
            who: 0,
            span: whole,
        },
    );
    errno(&mut model, bind(Policy::Release), libc::EBUSY);
    done(&mut model, Op::Exit { who: 1 });
    done(&mut model, bind(Policy::Release));
    done(&mut model, open(0));
    done(&mut model, map(0, BLOCK, 0));
    assert_eq!(touch(&mut model, 0, 3, None), word(0));
}

#[test]
fn policies_decide_what_the_next_tenant_sees() {
    let next = |policy: Policy, later: Policy, opened: bool| {
        let mut model = Model::new(false);
        done(&mut model, create());
        done(&mut model, bind(Policy::HandOut));
        done(&mut model, open(0));
        done(&mut model, map(0, BLOCK, 0));
        touch(&mut model, 0, 3, Some(7));
        let end = |model: &mut Model| {
            let whole = Span {
                at: 0,
                pages: BLOCK,
            };
            done(
                model,
                Op::Unmap {
                    who: 0,
                    span: whole,
                },
            );
            done(model, Op::Close { who: 0, file: 0 });
            done(model, Op::Unbind { device: 0 });
        };
        end(&mut model);
        done(&mut model, bind(policy));
        if opened {
            done(&mut model, open(0));
            done(&mut model, map(0, BLOCK, 0));
            end(&mut model);
        } else {
            done(&mut model, Op::Unbind { device: 0 });
        }
        done(&mut model, bind(later));
        done(&mut model, open(0));
        done(&mut model, map(0, BLOCK, 0));
        touch(&mut model, 0, 3, None)
    };
    assert_eq!(next(Policy::Never, Policy::Never, true), word(7));
    assert_eq!(next(Policy::Never, Policy::HandOut, true), word(0));
    assert_eq!(next(Policy::HandOut, Policy::Never, true), word(0));
    // Zeroed after release, or not yet.
    assert_eq!(next(Policy::Release, Policy::Never, true), Want::AnyWord);
    // Unbound in the middle of it, or before, or after.
    assert_eq!(next(Policy::HandOut, Policy::Never, false), Want::AnyWord);
}

#[test]
fn a_refused_mapping_leaves_a_gap_and_a_wrong_protection_does_not() {
    let mut model = model();
    errno(&mut model, map(2, 2, 2 * BLOCK - 1), libc::EINVAL);
    assert_eq!(
        touch(&mut model, 0, 3, None),
        fault(libc::SIGSEGV, SEGV_MAPERR)
    );
    assert_eq!(touch(&mut model, 0, 4, None), word(0));
    let read_only = Op::Open {
        who: 0,
        file: 1,
        device: 0,
        writable: false,
        nonblock: true,
    };
    done(&mut model, read_only);
    let write = Op::Map {
        who: 0,
        file: 1,
        span: Span { at: 4, pages: 1 },
        offset: 0,
        prot: RW,
        place: Place::Fixed,
    };
    errno(&mut model, write, libc::EACCES);
    assert_eq!(touch(&mut model, 0, 4, None), word(0));
}

#[test]
fn a_tracer_reads_what_its_owner_may_not_and_stops_at_a_hole() {
    let mut model = model();
    let protect = Op::Protect {
        who: 0,
        span: Span { at: 1, pages: 1 },
        prot: NONE,
    };
    done(&mut model, protect);
    assert_eq!(
        touch(&mut model, 0, 1, None),
        fault(libc::SIGSEGV, SEGV_ACCERR)
    );
    let (at, bytes) = (PAGE - 8, PAGE + 16);
    let peek = Op::Peek { who: 0, at, bytes };
    let wanted = [
        Want::Is(Seen::Number(bytes)),
        word(0),
        word(0),
        word(0),
        word(0),
    ];
    assert_eq!(steps(&mut model, peek), wanted);
    let poke = Op::Poke {
        who: 0,
        at,
        bytes,
        seed: 5,
    };
    assert_eq!(steps(&mut model, poke), [Want::Is(Seen::Number(8))]);
    assert_eq!(touch(&mut model, 0, 0, None), word(poked(5, at)));
    let beyond = Op::Peek {
        who: 0,
        at: (2 * BLOCK - 1) * PAGE + 8,
        bytes: PAGE,
    };
    let wanted = [Want::Is(Seen::Number(PAGE - 8)), word(0)];
    assert_eq!(steps(&mut model, beyond), wanted);
}

#[test]
fn racing_accesses_see_one_state_or_the_other() {
    let mut model = model();
    touch(&mut model, 0, 3, Some(7));
    let span = Span { at: 3, pages: 1 };
    let touches = [None, Some(7)].map(|write| Touch {
        page: 3,
        write,
        ..ENDS
    });
    let race = Op::Race {
        op: Box::new(Op::Unmap { who: 0, span }),
        touches: touches.to_vec(),
    };
    let gone = fault(libc::SIGSEGV, SEGV_MAPERR);
    let wanted = [Want::DONE, word(7).or(gone.clone()), Want::DONE.or(gone)];
    assert_eq!(steps(&mut model, race), wanted);
    // The write, if it came in time, changed nothing.
    done(&mut model, map(3, 1, 3));
    assert_eq!(touch(&mut model, 0, 3, None), word(7));
}

#[test]
fn threads_that_write_the_same_word_leave_it_unknown() {
    let mut model = model();
    let touch_of = |write| Touch {
        page: 3,
        write,
        ..ENDS
    };
    let threads = vec![
        vec![touch_of(Some(1)), touch_of(None)],
        vec![touch_of(Some(2))],
    ];
    let wants = steps(&mut model, Op::Threads { who: 0, threads });
    assert!([0, 1, 2].iter().all(|n| wants[1].allows(Seen::Word(*n))));
    assert!(!wants[1].allows(Seen::Word(3)));
    assert_eq!(touch(&mut model, 0, 3, None), Want::AnyWord);
}
