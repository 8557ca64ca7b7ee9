//! Tells what happens: on a live screen when a terminal watches, as plain lines when not.

use anyhow::{Context, Result};
use drover::top::{Snapshot, View, render};
use drover_api::v1::EventView;
use drover_model::EventSeq;
use ratatui::DefaultTerminal;
use std::time::{Duration, Instant};

pub struct Teller {
    began: Instant,
    wants_screen: bool,
    screen: Option<DefaultTerminal>,
    told: EventSeq,
    chapter: String,
}

impl Teller {
    pub fn new(wants_screen: bool) -> Self {
        Self { began: Instant::now(), wants_screen, screen: None, told: EventSeq(0), chapter: String::new() }
    }

    /// Since the demo was started.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A sentence of the story; on the screen it stands above everything else.
    pub fn say(&mut self, text: &str) {
        self.chapter = text.to_owned();
        if self.screen.is_none() {
            self.line(text);
        }
    }

    fn line(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.elapsed().as_secs_f64());
    }

    /// The screen is taken once there is something to show.
    pub fn open(&mut self) -> Result<()> {
        if self.wants_screen && self.screen.is_none() {
            self.screen = Some(ratatui::try_init().context("the terminal can't be drawn on")?);
        }
        Ok(())
    }

    pub fn show(&mut self, snapshot: &mut Snapshot) -> Result<()> {
        match &mut self.screen {
            Some(terminal) => {
                snapshot.banner = vec![format!("{:.0} s  {}", self.began.elapsed().as_secs_f64(), self.chapter)];
                let view = View::default();
                terminal.draw(|frame| render(frame, snapshot, &view)).context("the terminal can't be drawn on")?;
            }
            None => {
                let new: Vec<&EventView> = snapshot.events.iter().filter(|event| event.seq > self.told).collect();
                for event in &new {
                    self.line(&format!("  {:<10} {}", event.severity.to_string(), event.text));
                }
                self.told = new.last().map_or(self.told, |event| event.seq);
            }
        }
        Ok(())
    }

    /// Gives the terminal back. Also done on drop.
    pub fn restore(&mut self) {
        if self.screen.take().is_some() {
            ratatui::restore();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.restore();
    }
}
