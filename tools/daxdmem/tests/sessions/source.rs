// SPDX-License-Identifier: GPL-2.0

//! The errors that the tool's source can make: variants of error enums with their messages, and messages that are
//! written where the error arises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Lit, LitStr, Meta, Token};

/// What was found.
#[derive(Debug, Default)]
pub struct Source {
    /// Format strings of messages, by `Enum::Variant` or `file.rs: format string`.
    pub messages: BTreeMap<String, String>,
    /// Variants that the file of a verb makes itself, by verb.
    pub made: BTreeMap<String, BTreeSet<String>>,
    /// What verbs that change the host call themselves, by verb.
    pub changing: BTreeMap<String, BTreeSet<String>>,
    /// Verbs that read the state.
    pub reading: BTreeSet<String>,
}

/// Calls whose arguments say what went wrong.
const SAYING: &[&str] = &["Err", "custom", "disturbed", "kernel", "not"];
/// Methods likewise.
const SAYING_METHODS: &[&str] = &["conflict", "map_err", "ok_or", "ok_or_else"];
/// Every message that starts so is one, wherever it is.
const BEGINNINGS: &[&str] = &["cannot ", "'{"];

impl Source {
    /// Reads all of it.
    pub fn read(directory: &Path) -> Source {
        let mut source = Source::default();
        let mut directories = vec![directory.to_owned()];
        while let Some(below) = directories.pop() {
            for entry in fs::read_dir(below).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(directory).unwrap();
                match path.is_dir() {
                    true => directories.push(path),
                    false if name.ends_with("tests.rs") => {}
                    false => source.file(
                        &name.display().to_string(),
                        &fs::read_to_string(&path).unwrap(),
                    ),
                }
            }
        }
        let known = source.messages.clone();
        for made in source.made.values_mut() {
            made.retain(|variant| known.contains_key(variant));
        }
        source
    }

    fn file(&mut self, name: &str, text: &str) {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let verb = name
            .strip_prefix("verb/")
            .and_then(|name| name.strip_suffix(".rs"));
        let mut reader = Reader {
            file: name,
            verb: verb.map(|verb| verb.replace('_', "-")),
            says: false,
            source: self,
        };
        reader.visit_file(&file);
    }
}

struct Reader<'a> {
    file: &'a str,
    verb: Option<String>,
    /// Within something that says what went wrong.
    says: bool,
    source: &'a mut Source,
}

impl Reader<'_> {
    fn saying(&mut self, says: bool, visit: impl FnOnce(&mut Self)) {
        let before = self.says;
        self.says |= says;
        visit(self);
        self.says = before;
    }

    fn path(&mut self, path: &syn::Path) -> Option<String> {
        let mut words = path
            .segments
            .iter()
            .rev()
            .map(|part| part.ident.to_string());
        let (variant, of) = (words.next()?, words.next()?);
        let name = format!("{of}::{variant}");
        if let (Some(verb), true) = (&self.verb, of.ends_with("Error")) {
            let made = self.source.made.entry(verb.clone()).or_default();
            made.insert(name.clone());
        }
        Some(name)
    }
}

/// The format string of `#[error("…")]`.
fn error_of(attribute: &Attribute) -> Option<String> {
    let Meta::List(list) = &attribute.meta else {
        return None;
    };
    if !list.path.is_ident("error") {
        return None;
    }
    let parts = Punctuated::<Expr, Token![,]>::parse_terminated;
    match parts.parse2(list.tokens.clone()).ok()?.first()? {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test =
        |list: &syn::MetaList| list.path.is_ident("cfg") && list.tokens.to_string() == "test";
    attributes
        .iter()
        .any(|attribute| matches!(&attribute.meta, Meta::List(list) if is_test(list)))
}

fn last(path: &syn::Path) -> String {
    path.segments
        .last()
        .map(|part| part.ident.to_string())
        .unwrap_or_default()
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        for variant in &item.variants {
            if let Some(message) = variant.attrs.iter().find_map(error_of) {
                let name = format!("{}::{}", item.ident, variant.ident);
                let twice = self.source.messages.insert(name.clone(), message);
                assert_eq!(twice, None, "two errors are called {name}");
            }
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    // What is matched is not made.
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}

    fn visit_expr_path(&mut self, item: &'ast syn::ExprPath) {
        self.path(&item.path);
    }

    fn visit_expr_struct(&mut self, item: &'ast syn::ExprStruct) {
        let name = self.path(&item.path);
        let says = name.is_some_and(|name| name.contains("Error::"));
        self.saying(says, |reader| visit::visit_expr_struct(reader, item));
    }

    fn visit_expr_call(&mut self, item: &'ast syn::ExprCall) {
        let callee = match &*item.func {
            Expr::Path(path) => last(&path.path),
            _ => String::new(),
        };
        if let Some(verb) = self.verb.clone() {
            match (callee.as_str(), item.args.first()) {
                ("begin" | "begin_giving" | "begin_on_land", Some(Expr::Lit(literal))) => {
                    if let Lit::Str(text) = &literal.lit {
                        let named = self.source.changing.entry(verb.clone()).or_default();
                        named.insert(text.value());
                        self.source.reading.insert(verb);
                    }
                }
                ("look", Some(_)) => _ = self.source.reading.insert(verb),
                _ => {}
            }
        }
        let says = SAYING.contains(&callee.as_str());
        self.saying(says, |reader| visit::visit_expr_call(reader, item));
    }

    fn visit_expr_method_call(&mut self, item: &'ast syn::ExprMethodCall) {
        self.visit_expr(&item.receiver);
        let says = SAYING_METHODS.contains(&item.method.to_string().as_str());
        self.saying(says, |reader| {
            item.args.iter().for_each(|part| reader.visit_expr(part));
        });
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let parts = Punctuated::<Expr, Token![,]>::parse_terminated;
        // Others have nothing that is read here.
        if let Ok(parts) = parts.parse2(item.tokens.clone()) {
            parts.iter().for_each(|part| self.visit_expr(part));
        }
    }

    fn visit_lit_str(&mut self, item: &'ast LitStr) {
        let text = item.value();
        let begins = BEGINNINGS
            .iter()
            .any(|beginning| text.starts_with(beginning));
        if begins || (self.says && text.trim().contains(' ')) {
            let name = format!("{}: {text}", self.file);
            self.source.messages.insert(name, text);
        }
    }
}
