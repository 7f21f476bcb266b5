// SPDX-License-Identifier: GPL-2.0

//! Generates the raw declarations of libdaxctl from the headers that are installed, and links the library.

use std::error::Error;
use std::path::PathBuf;

/// First release of ndctl with everything that is called here (`daxctl_dev_set_mapping`).
const OLDEST: &str = "71";

fn main() -> Result<(), Box<dyn Error>> {
    let library = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .probe("libdaxctl")
        .map_err(|error| {
            format!(
                "libdaxctl is needed to build daxdmem: install libdaxctl-dev and pkgconf ({error})"
            )
        })?;
    let include = |path: &PathBuf| format!("-I{}", path.display());
    let bindings = bindgen::Builder::default()
        .header_contents("libdaxctl.h", "#include <daxctl/libdaxctl.h>\n")
        .clang_args(library.include_paths.iter().map(include))
        .allowlist_function("daxctl_.*")
        // Takes a va_list and a uuid_t, which have no good form in Rust; not called here.
        .blocklist_function("daxctl_set_log_fn|daxctl_new_region|daxctl_region_get_uuid")
        .generate()?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("libdaxctl.rs");
    bindings.write_to_file(out)?;
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
