// SPDX-License-Identifier: GPL-2.0

//! Changes of an XML text at single places. What is not named stays, byte for byte: comments, order, white space, the
//! kind of quotes.

use std::ops::Range;

use roxmltree::{Document, Node};

/// Changes that are collected, then made.
pub struct Splices<'d, 'i> {
    doc: &'d Document<'i>,
    changes: Vec<(Range<usize>, String)>,
}

impl<'d, 'i> Splices<'d, 'i> {
    /// None yet.
    pub fn new(doc: &'d Document<'i>) -> Self {
        Splices {
            doc,
            changes: Vec::new(),
        }
    }

    fn source(&self) -> &'i str {
        self.doc.input_text()
    }

    /// Puts text in the place of a range.
    pub fn replace(&mut self, range: Range<usize>, text: String) {
        self.changes.push((range, text));
    }

    /// Sets an attribute.
    pub fn set_attribute(&mut self, node: Node, name: &str, value: &str) {
        match node.attribute_node(name) {
            Some(attribute) if attribute.value() == value => {}
            Some(attribute) => {
                let range = attribute.range_value();
                // The quotes stay, and with them what has to be escaped.
                let value = escaped(value, &self.source()[range.start - 1..range.start]);
                self.replace(range, value);
            }
            None => {
                let at = node.range().start + 1 + self.tag(node).len();
                self.replace(at..at, format!(" {name}='{}'", escaped(value, "'")));
            }
        }
    }

    /// Sets the text of an element that holds text and nothing else. Returns whether it does.
    pub fn set_text(&mut self, node: Node, text: &str) -> bool {
        let mut children = node.children();
        let (Some(child), None) = (children.next(), children.next()) else {
            return false;
        };
        let range = child.range();
        let old = &self.source()[range.clone()];
        let (body, lead) = (old.trim(), old.len() - old.trim_start().len());
        if !child.is_text() || body.is_empty() {
            return false;
        }
        if body != text {
            let start = range.start + lead;
            self.replace(start..start + body.len(), text.to_owned());
        }
        true
    }

    /// Adds children behind those an element has, each on a line of its own where that is the way of the text. A
    /// child's further lines are indented like its first.
    pub fn append(&mut self, parent: Node, children: &[String]) {
        let source = self.source();
        let outer = self.indent(parent).unwrap_or_default();
        let first = parent.children().find(Node::is_element);
        let inner = first
            .and_then(|child| self.indent(child))
            .map_or_else(|| format!("{outer}  "), str::to_owned);
        let lines = self.lines(children, &inner);
        let range = parent.range();
        let text = &source[range.clone()];
        if let Some(open) = text.strip_suffix("/>") {
            let at = range.start + open.trim_end().len();
            let tag = self.tag(parent);
            let newline = self.newline();
            self.replace(at..range.end, format!(">{newline}{lines}{outer}</{tag}>"));
            return;
        }
        let close = range.start + text.rfind("</").unwrap_or(text.len());
        match self.line_start(close) {
            // The closing tag has a line of its own.
            Some(start) => self.replace(start..start, lines),
            None if first.is_some_and(|child| self.indent(child).is_none()) => {
                self.replace(close..close, children.concat())
            }
            None => {
                let newline = self.newline();
                self.replace(close..close, format!("{newline}{lines}{outer}"));
            }
        }
    }

    /// Adds a sibling before an element.
    pub fn insert_before(&mut self, node: Node, sibling: &str) {
        let at = node.range().start;
        match (self.line_start(at), self.indent(node)) {
            (Some(start), Some(indent)) => {
                let lines = self.lines(&[sibling.to_owned()], indent);
                self.replace(start..start, lines);
            }
            _ => self.replace(at..at, sibling.to_owned()),
        }
    }

    /// An element's name with its prefix, as written.
    pub fn tag(&self, node: Node) -> &'i str {
        let text = &self.source()[node.range()][1..];
        let end = text.find(|c: char| c.is_whitespace() || c == '/' || c == '>');
        &text[..end.unwrap_or(text.len())]
    }

    /// The text with all changes.
    pub fn done(mut self) -> String {
        let source = self.source();
        // Stable: what was added to one place stays in order.
        self.changes
            .sort_by_key(|(range, _)| (range.start, range.end));
        let mut text = String::with_capacity(source.len() + 1024);
        let mut at = 0;
        for (range, new) in &self.changes {
            text.push_str(&source[at..range.start]);
            text.push_str(new);
            at = range.end;
        }
        text.push_str(&source[at..]);
        text
    }

    fn lines(&self, children: &[String], indent: &str) -> String {
        let newline = self.newline();
        let lines = children.iter().flat_map(|child| child.lines());
        lines.flat_map(|line| [indent, line, newline]).collect()
    }

    fn newline(&self) -> &'static str {
        match self.source().contains("\r\n") {
            true => "\r\n",
            false => "\n",
        }
    }

    /// Start of the line of which this is the first that is not blank.
    fn line_start(&self, at: usize) -> Option<usize> {
        let before = &self.source()[..at];
        let start = before.rfind('\n')? + 1;
        before[start..].trim().is_empty().then_some(start)
    }

    /// What stands before an element that begins a line.
    fn indent(&self, node: Node) -> Option<&'i str> {
        let at = node.range().start;
        self.line_start(at).map(|start| &self.source()[start..at])
    }
}

/// For an attribute's value in such quotes.
pub fn escaped(value: &str, quote: &str) -> String {
    let value = value.replace('&', "&amp;").replace('<', "&lt;");
    match quote {
        "\"" => value.replace('"', "&quot;"),
        _ => value.replace('\'', "&apos;"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(source: &str, change: impl FnOnce(&mut Splices, Node)) -> String {
        let doc = Document::parse(source).unwrap();
        let mut splices = Splices::new(&doc);
        change(&mut splices, doc.root_element());
        splices.done()
    }

    #[test]
    fn attributes_keep_their_quotes() {
        let set = |source, value| changed(source, |s, root| s.set_attribute(root, "b", value));
        assert_eq!(set("<a b=\"1\"/>", "\"<'"), "<a b=\"&quot;&lt;'\"/>");
        assert_eq!(set("<a  b = '1' />", "\"&'"), "<a  b = '\"&amp;&apos;' />");
        assert_eq!(set("<a c='1'/>", "2"), "<a b='2' c='1'/>");
        assert_eq!(
            set("<p:a xmlns:p='u'>1</p:a>", "2"),
            "<p:a b='2' xmlns:p='u'>1</p:a>"
        );
        assert_eq!(set("<a b='&#50;'/>", "2"), "<a b='&#50;'/>");
    }

    #[test]
    fn texts_keep_their_blanks() {
        let set = |source| {
            let mut is_text = false;
            let text = changed(source, |s, root| is_text = s.set_text(root, "2"));
            (is_text, text)
        };
        assert_eq!(set("<a> 1\n</a>"), (true, "<a> 2\n</a>".to_owned()));
        for source in ["<a/>", "<a> </a>", "<a>1<!-- --></a>", "<a><b/></a>"] {
            assert_eq!(set(source), (false, source.to_owned()));
        }
    }

    #[test]
    fn children_fit_in() {
        let add = |source| {
            changed(source, |s, root| {
                s.append(root, &["<x/>".to_owned(), "<y>\n  <z/>\n</y>".to_owned()])
            })
        };
        assert_eq!(
            add("<a>\n\t<b/>\n</a>\n"),
            "<a>\n\t<b/>\n\t<x/>\n\t<y>\n\t  <z/>\n\t</y>\n</a>\n"
        );
        assert_eq!(
            add("<a>\r\n  <b/></a>"),
            "<a>\r\n  <b/>\r\n  <x/>\r\n  <y>\r\n    <z/>\r\n  </y>\r\n</a>"
        );
        assert_eq!(add("<a />"), "<a>\n  <x/>\n  <y>\n    <z/>\n  </y>\n</a>");
        assert_eq!(add("<a></a>"), "<a>\n  <x/>\n  <y>\n    <z/>\n  </y>\n</a>");
        assert_eq!(add("<a><b/></a>"), "<a><b/><x/><y>\n  <z/>\n</y></a>");
        let before = |source| {
            changed(source, |s, root| {
                s.insert_before(root.first_element_child().unwrap(), "<x/>")
            })
        };
        assert_eq!(before("<a>\n <b/>\n</a>"), "<a>\n <x/>\n <b/>\n</a>");
        assert_eq!(before("<a><b/></a>"), "<a><x/><b/></a>");
    }
}
