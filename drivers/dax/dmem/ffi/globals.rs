// SPDX-License-Identifier: GPL-2.0

//! The module's globals: the book of devices, the turn to bind one, who mapped them, what is known of
//! memory errors, and where it is listed. `registry.rs`, `dma.rs`, `poison.rs` and `region.rs` say
//! what they mean.

use core::pin::Pin;
use kernel::prelude::*;
use kernel::sync::global_lock;

use crate::dma::{self, Mappers};
use crate::loan::{self, StandIns};
use crate::poison::{self, Ledger, News};
use crate::registry::{self, Book};

use super::region::Regions;

global_lock! {
    // SAFETY: `Globals::new()` is called by the module's own init before the driver is registered,
    // that is before anything can look for a device.
    pub(crate) unsafe(uninit) static BOOK: Mutex<Book> = Book::new();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static MAPPERS: Mutex<Mappers> = Mappers::new();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static TURN: Mutex<()> = ();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static SETTLING: Mutex<()> = ();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static LEDGER: Mutex<Ledger> = Ledger::new();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static NEWS: SpinLock<News> = News::new();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static REGIONS: Mutex<Regions> = Regions::new();
}

global_lock! {
    // SAFETY: As above.
    pub(crate) unsafe(uninit) static STAND_INS: Mutex<StandIns> = StandIns::new();
}

/// The globals while the module is loaded; statics are not dropped with their module.
pub(crate) struct Globals(());

impl Globals {
    /// Makes the globals usable. Must be called once, before anything else.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Called once, from the module's init.
        unsafe {
            BOOK.init();
            MAPPERS.init();
            TURN.init();
            SETTLING.init();
            LEDGER.init();
            NEWS.init();
            REGIONS.init();
            STAND_INS.init();
        }
        registry::begin()?;
        poison::begin().inspect_err(|_| registry::finish())?;
        Ok(Self(()))
    }
}

impl Drop for Globals {
    fn drop(&mut self) {
        // The driver is unregistered, and no file is open when the module goes.
        loan::finish();
        poison::finish();
        registry::finish();
        dma::finish();
    }
}
