//! What goes to standard output: data only, as a table for people or exactly as on the wire.

use super::Failure;
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    pub colour: bool,
}

impl Output {
    /// Prints `value`; `table` is how it looks to people.
    pub fn emit<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.print(&table(value)),
            Format::Json => {
                let text = serde_json::to_string_pretty(value).expect("wire types serialise to JSON");
                self.print(&(text + "\n"))
            }
            Format::Yaml => self.print(&serde_yaml_ng::to_string(value).expect("wire types serialise to YAML")),
        }
    }

    /// One of many that follow each other: a line of JSON, a YAML document, or a line for people.
    pub fn emit_next<T: Serialize>(self, value: &T, line: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.print(&(line(value) + "\n")),
            Format::Json => {
                let text = serde_json::to_string(value).expect("wire types serialise to JSON");
                self.print(&(text + "\n"))
            }
            Format::Yaml => {
                let text = serde_yaml_ng::to_string(value).expect("wire types serialise to YAML");
                self.print(&format!("---\n{text}"))
            }
        }
    }

    pub fn print(self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|source| match source.kind() {
            ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::File { path: "standard output".to_owned(), what: "written", source },
        })
    }

    /// A remark for people; standard error, so that it never mixes with data.
    pub fn say(self, text: &str) {
        eprintln!("{text}");
    }
}

/// Lines of columns without frames: good to read, and to cut with other tools.
pub struct Columns {
    table: Table,
    colour: bool,
}

impl Columns {
    /// A name that begins with `>` stands over figures, which end where it ends.
    pub fn new(output: Output, names: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(names.iter().map(|name| name.trim_start_matches('>')));
        for (column, name) in table.column_iter_mut().zip(names) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { table, colour: output.colour }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.table.add_row(cells.into_iter().collect::<Vec<_>>());
    }

    pub fn text(mut self) -> String {
        if self.colour {
            self.table.enforce_styling();
        } else {
            self.table.force_no_tty();
        }
        self.table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// Names and values, one a line.
pub fn properties<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:<width$}  {value}").trim_end().to_owned() + "\n").collect()
}

pub fn cell(text: impl ToString) -> Cell {
    Cell::new(text.to_string())
}

/// A word that says whether all is well.
pub fn state_cell(word: impl ToString) -> Cell {
    let word = word.to_string();
    let colour = match word.as_str() {
        "up" | "running" | "done" | "balanced" | "applied" => Color::Green,
        "failed" | "down" | "hot" | "escalation" | "saturated" | "hotspot" => Color::Red,
        "asleep" | "off" | "stopped" | "unknown" | "skipped" | "superseded" | "rejected" => Color::DarkGrey,
        _ => Color::Yellow,
    };
    cell(word).fg(colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { format: Format::Table, colour: false };

    #[test]
    fn columns_line_up_without_frames_or_trailing_blanks() {
        let mut columns = Columns::new(PLAIN, &["HOST", ">VMS", "STATE"]);
        columns.row([cell("h1"), cell(3), state_cell("up")]);
        columns.row([cell("host-two"), cell(12), state_cell("asleep")]);
        assert_eq!(columns.text(), "HOST      VMS  STATE\nh1          3  up\nhost-two   12  asleep\n");
    }

    #[test]
    fn colours_are_there_only_when_wanted() {
        let coloured = |colour| {
            let mut columns = Columns::new(Output { colour, ..PLAIN }, &["STATE"]);
            columns.row([state_cell("down")]);
            columns.text()
        };
        assert!(coloured(true).contains("\u{1b}["));
        assert!(!coloured(false).contains("\u{1b}["));
    }

    #[test]
    fn properties_line_up() {
        let text = properties([("id", "h1".to_owned()), ("accelerator", "tcg".to_owned()), ("why", String::new())]);
        assert_eq!(text, "id           h1\naccelerator  tcg\nwhy\n");
    }
}
