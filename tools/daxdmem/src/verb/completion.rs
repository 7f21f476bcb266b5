// SPDX-License-Identifier: GPL-2.0

//! `daxdmem completion` prints what a shell needs to complete the command line; `daxdmem man`, which only packages
//! call, writes the man pages. Both are made from the command line's own definition.

use clap::CommandFactory;

use crate::cli::{Cli, CompletionArgs, ManArgs};
use crate::error::{Error, Result};
use crate::terminal::answer;

/// Runs `completion`.
pub fn run(args: &CompletionArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "daxdmem", &mut script);
    answer(&String::from_utf8_lossy(&script))
}

/// Runs `man`: one page for the tool, one for each verb.
pub fn man(args: &ManArgs) -> Result<()> {
    let what = format!("cannot write man pages to {}", args.dir.display());
    let mut pages = vec![Cli::command().disable_help_subcommand(true)];
    // As in git-log(1): a page is called by the tool and the verb.
    pages.extend(
        Cli::command()
            .disable_help_subcommand(true)
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(|verb| {
                let name = format!("daxdmem-{}", verb.get_name());
                verb.clone()
                    .display_name(&name)
                    .bin_name(name.replacen('-', " ", 1))
            }),
    );
    let write = || {
        for page in pages {
            let page = clap_mangen::Man::new(page)
                .section("8")
                .manual("System administration");
            page.generate_to(&args.dir)?;
        }
        Ok(())
    };
    write().map_err(Error::kernel(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let args = ManArgs {
            dir: dir.path().to_owned(),
        };
        man(&args).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let tool = page("daxdmem.8");
        assert!(tool.contains("daxdmem\\-create(8)") && !tool.contains("daxdmem\\-help"));
        let create = page("daxdmem-create.8");
        assert!(create.contains("\\fBdaxdmem create\\fR"), "{create}");
        assert!(create.contains("\\-\\-size"), "{create}");
        for verb in Cli::command().get_subcommands() {
            let name = format!("daxdmem-{}.8", verb.get_name());
            assert_ne!(dir.path().join(name).exists(), verb.is_hide_set());
        }
    }

    #[test]
    fn a_directory_that_is_not_there() {
        let args = ManArgs {
            dir: "/nowhere/at/all".into(),
        };
        let error = man(&args).unwrap_err().to_string();
        assert!(error.starts_with("cannot write man pages to /nowhere/at/all: "));
    }
}
