// SPDX-License-Identifier: GPL-2.0

//! The dax bus: registration of the driver, and its probe and remove.

use core::ptr::NonNull;
use kernel::error::{from_result, to_result};
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::types::Opaque;

use crate::device::{bind, Binding};

use super::attributes;
use super::dev_dax::DevDax;
use super::{raw, this_module};

/// The driver's name on the bus.
const NAME: &CStr = c"dax_dmem";

/// A driver type no device has: devices are bound by name only (`new_id`), never because they
/// appear.
const MATCHES_BY_NAME_ONLY: raw::dax_driver_type = raw::dax_driver_type::MAX;

// SAFETY: Integers, pointers and optional functions: all of them may be zero.
unsafe impl pin_init::Zeroable for raw::dax_device_driver {}

/// The driver's registration on the dax bus. Dropping it unbinds every device.
///
/// # Invariants
///
/// `driver` is registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration {
    #[pin]
    driver: Opaque<raw::dax_device_driver>,
}

// SAFETY: The driver core serialises all use of a registered driver.
unsafe impl Send for Registration {}
// SAFETY: A shared `Registration` has no operations.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers the driver.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Registered where this succeeds.
            driver <- Opaque::try_ffi_init(|slot: *mut raw::dax_device_driver| {
                let mut driver: raw::dax_device_driver = pin_init::zeroed();
                driver.type_ = MATCHES_BY_NAME_ONLY;
                driver.probe = Some(probe);
                driver.remove = Some(remove);
                driver.drv.groups = attributes::driver_groups();
                driver.drv.dev_groups = attributes::device_groups();
                // SAFETY: `slot` is valid for writes and does not move afterwards; name and tables
                // are statics.
                to_result(unsafe {
                    slot.write(driver);
                    raw::__dax_driver_register(slot, this_module(), NAME.as_char_ptr())
                })
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, by the invariant.
        unsafe { raw::dax_driver_unregister(self.driver.get()) };
    }
}

/// Called with the device lock held. Goes on to [`bind`].
///
/// # Safety
///
/// `dev_dax` must be a registered device whose lock is held, as the dax bus passes it.
unsafe extern "C" fn probe(dev_dax: *mut raw::dev_dax) -> c_int {
    from_result(|| {
        // SAFETY: The dax bus passes a registered device under its lock.
        let dev_dax = unsafe { DevDax::from_raw(NonNull::new(dev_dax).ok_or(EINVAL)?) };
        // Allocated first: what is bound can only be unbound again.
        let slot = KBox::<Binding>::new_uninit(GFP_KERNEL)?;
        let binding = bind(&dev_dax).inspect_err(|error| {
            pr_err!("{}: not bound: {}\n", dev_dax.name(), error);
        })?;
        let binding = KBox::into_raw(KBox::write(slot, binding));
        // SAFETY: The device is ours until `remove`, which takes the box back.
        unsafe { raw::dev_set_drvdata(dev_dax.device(), binding.cast()) };
        Ok(0)
    })
}

/// Called with the device lock held, for a device `probe` bound. Goes on to [`Binding::unbind`].
///
/// # Safety
///
/// As for `probe`, and `probe` must have succeeded for the device.
unsafe extern "C" fn remove(dev_dax: *mut raw::dev_dax) {
    let Some(dev_dax) = NonNull::new(dev_dax) else {
        return;
    };
    // SAFETY: The dax bus passes a registered device under its lock.
    let dev_dax = unsafe { DevDax::from_raw(dev_dax) };
    // SAFETY: `probe` stored the box. The attributes that use it are gone: the driver core removes
    // them first.
    let binding =
        unsafe { KBox::<Binding>::from_raw(raw::dev_get_drvdata(dev_dax.device()).cast()) };
    KBox::into_inner(binding).unbind(&dev_dax);
}

/// The binding of a bound device.
///
/// # Safety
///
/// `device` must stay bound to this driver for `'a`.
pub(super) unsafe fn binding_of<'a>(device: *const raw::device) -> &'a Binding {
    // SAFETY: `probe` stored the box, and `remove` has not run.
    unsafe { &*raw::dev_get_drvdata(device).cast_const().cast::<Binding>() }
}
