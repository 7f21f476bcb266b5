// SPDX-License-Identifier: GPL-2.0

//! The dax bus: registration of the driver, and its probe and remove.

use core::mem::offset_of;
use core::ptr::{addr_of_mut, null_mut, NonNull};
use kernel::error::{from_result, to_result};
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

use crate::device::{bind, Binding};
use crate::plan::{Extent, PhysAddr};
use crate::registry;

use super::attributes;
use super::dev_dax::DevDax;
use super::{raw, region, this_module};

/// The driver's name on the bus.
const NAME: &CStr = c"dax_dmem";

/// A driver type no device has: devices are bound by name only (`new_id`), never because they
/// appear.
const MATCHES_BY_NAME_ONLY: raw::dax_driver_type = raw::dax_driver_type::MAX;

// SAFETY: Integers, pointers and optional functions: all of them may be zero.
unsafe impl pin_init::Zeroable for raw::dax_device_driver {}

/// The driver's registration on the dax bus, and its watch over what other drivers do there.
/// Dropping it unbinds every device.
///
/// # Invariants
///
/// Both parts are registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration {
    #[pin]
    registered: Opaque<Registered>,
}

struct Registered {
    driver: raw::dax_device_driver,
    watch: raw::notifier_block,
}

// SAFETY: The driver core serialises all use of a registered driver and of its notifiers.
unsafe impl Send for Registration {}
// SAFETY: A shared `Registration` has no operations.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers the driver.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Registered where this succeeds.
            registered <- Opaque::try_ffi_init(|slot: *mut Registered| {
                let mut driver: raw::dax_device_driver = pin_init::zeroed();
                driver.type_ = MATCHES_BY_NAME_ONLY;
                driver.probe = Some(probe);
                driver.remove = Some(remove);
                driver.drv.groups = attributes::driver_groups();
                driver.drv.dev_groups = attributes::device_groups();
                let watch = raw::notifier_block {
                    notifier_call: Some(watch),
                    next: null_mut(),
                    priority: 0,
                };
                // SAFETY: `slot` is valid for writes and does not move afterwards; name and tables
                // are statics. Registering has told the driver its bus.
                unsafe {
                    slot.write(Registered { driver, watch });
                    let driver = addr_of_mut!((*slot).driver);
                    let watch = addr_of_mut!((*slot).watch);
                    let name = NAME.as_char_ptr();
                    to_result(raw::__dax_driver_register(driver, this_module(), name))?;
                    to_result(raw::bus_register_notifier((*driver).drv.bus, watch))
                        .inspect_err(|_| raw::dax_driver_unregister(driver))
                        .map(|()| region::show_all((*driver).drv.bus))
                }
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        let registered = self.registered.get();
        // SAFETY: Registered, by the invariant.
        unsafe {
            let driver = addr_of_mut!((*registered).driver);
            raw::dax_driver_unregister(driver);
            // While the bus still tells of regions that go.
            region::hide_all();
            // What other drivers do no longer matters: the module forgets all it knows.
            raw::bus_unregister_notifier((*driver).drv.bus, addr_of_mut!((*registered).watch));
        }
    }
}

/// Called for every event on the dax bus. Goes on to [`registry::forget`] where memory leaves this
/// driver's control, and to [`region`] where regions come and go.
///
/// # Safety
///
/// `watch` must be the member of a [`Registered`], `data` a device of the dax bus; when a driver
/// binds it, with its device lock held.
unsafe extern "C" fn watch(
    watch: *mut raw::notifier_block,
    event: usize,
    data: *mut c_void,
) -> c_int {
    const BIND: usize = raw::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER as usize;
    const BOUND: usize = raw::bus_notifier_event_BUS_NOTIFY_BOUND_DRIVER as usize;
    const ADD: usize = raw::bus_notifier_event_BUS_NOTIFY_ADD_DEVICE as usize;
    const DEL: usize = raw::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE as usize;
    const REMOVED: usize = raw::bus_notifier_event_BUS_NOTIFY_REMOVED_DEVICE as usize;
    let device = data.cast::<raw::device>();
    // SAFETY: By the safety requirement.
    let (dev_dax, is_ours) = unsafe {
        let registered = watch
            .byte_sub(offset_of!(Registered, watch))
            .cast::<Registered>();
        let ours = addr_of_mut!((*registered).driver.drv);
        (dev_dax_of(device), (*device).driver == ours)
    };
    let Some(dev_dax) = dev_dax else {
        return NOTIFY_DONE;
    };
    match event {
        // Before probe, which may write already; and after it, for memory whose scrub ended, and was
        // noted as clean, just before the other driver claimed it.
        BIND | BOUND if !is_ours => {
            // SAFETY: The driver core holds the device lock while it binds.
            let dev_dax = unsafe { DevDax::from_raw(dev_dax) };
            match dev_dax.ranges() {
                Ok(ranges) => ranges
                    .iter()
                    .for_each(|range| registry::forget(&range.extent())),
                Err(_) => registry::forget_all(),
            }
        }
        DEL => {
            // SAFETY: The device is being removed and holds its region until it is gone.
            if let Some(region) = unsafe { region_that_ends_with(dev_dax) } {
                registry::forget(&region);
            }
        }
        // SAFETY: The device has been added.
        ADD => unsafe { region::show(dev_dax) },
        // Not before: at DEL the bus still lists the device to who searches it.
        REMOVED => {
            // SAFETY: As at DEL.
            unsafe {
                if region_that_ends_with(dev_dax).is_some() {
                    region::hide(dev_dax);
                }
            }
        }
        _ => {}
    }
    NOTIFY_DONE
}

/// The answer of a notifier that does not care.
const NOTIFY_DONE: c_int = raw::NOTIFY_DONE as c_int;

/// The `dev_dax` of a device.
///
/// # Safety
///
/// `device` must be a device of the dax bus: each is part of one.
pub(super) unsafe fn dev_dax_of(device: *mut raw::device) -> Option<NonNull<raw::dev_dax>> {
    // SAFETY: By the safety requirement.
    NonNull::new(unsafe { device.byte_sub(offset_of!(raw::dev_dax, dev)).cast() })
}

/// The memory of the device's region if it does not outlive the device: the first device of a
/// region, and the only one of a static region, go with it.
///
/// # Safety
///
/// `dev_dax` must be a device that is being removed from the bus.
unsafe fn region_that_ends_with(dev_dax: NonNull<raw::dev_dax>) -> Option<Extent> {
    // SAFETY: By the safety requirement: a device holds its region.
    let (last, res) = unsafe {
        let dev_dax = dev_dax.as_ref();
        (dev_dax.id == 0 || !dev_dax.dyn_id, &(*dev_dax.region).res)
    };
    let extent = Extent {
        start: PhysAddr::from_raw(res.start),
        len: res.end.wrapping_sub(res.start).wrapping_add(1),
    };
    last.then_some(extent)
}

/// Called with the device lock held. Goes on to [`bind`].
///
/// # Safety
///
/// `dev_dax` must be a registered device whose lock is held, as the dax bus passes it.
unsafe extern "C" fn probe(dev_dax: *mut raw::dev_dax) -> c_int {
    from_result(|| {
        // SAFETY: The dax bus passes a registered device under its lock.
        let dev_dax = unsafe {
            let dev_dax = NonNull::new(dev_dax).ok_or(EINVAL)?;
            region::show(dev_dax);
            DevDax::from_raw(dev_dax)
        };
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
