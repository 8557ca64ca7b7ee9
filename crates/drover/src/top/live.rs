//! The screen that follows the cluster until a key ends it.

use super::{Snapshot, View, render};
use drover_api::client::{ApiError, Client};
use drover_api::v1::EventQuery;
use drover_model::EventSeq;
use drover_model::intent::{Host, Vm};
use drover_model::migration::MigrationRecord;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Time between two looks at the cluster.
const REFRESH: Duration = Duration::from_secs(1);
/// Longest that a key press waits to be seen, and the reader of keys to notice the end.
const KEY_POLL: Duration = Duration::from_millis(100);
const KEYS_WAITING_MAX: usize = 32;
const PAGE_ROWS: isize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Quit,
    NextPart,
    Scroll(isize),
    Redraw,
}

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the terminal can't be drawn on")]
    Terminal(#[source] std::io::Error),
}

/// Takes the terminal over until `q`, Escape or Ctrl-C.
pub async fn run(client: &Client, plain: bool) -> Result<(), LiveError> {
    // The first look comes before the screen, so that a wrong token is an error and not an empty screen.
    let mut snapshot = Snapshot::default();
    refresh(client, &mut snapshot).await?;
    let mut terminal = ratatui::try_init().map_err(LiveError::Terminal)?;
    let ended = follow(client, &mut terminal, snapshot, plain).await;
    ratatui::try_restore().map_err(LiveError::Terminal)?;
    ended
}

async fn follow(
    client: &Client,
    terminal: &mut ratatui::DefaultTerminal,
    mut snapshot: Snapshot,
    plain: bool,
) -> Result<(), LiveError> {
    let mut keys = read_keys();
    let mut view = View { plain, ..View::default() };
    let mut tick = tokio::time::interval(REFRESH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| render(frame, &snapshot, &view)).map_err(LiveError::Terminal)?;
        tokio::select! {
            key = keys.recv() => match key {
                None | Some(Key::Quit) => return Ok(()),
                Some(Key::NextPart) => view.next_focus(),
                Some(Key::Scroll(rows)) => view.scroll(rows, &snapshot),
                Some(Key::Redraw) => {}
            },
            _ = tick.tick() => {
                // What was seen last stays on the screen, with the reason why it is old.
                snapshot.banner = match refresh(client, &mut snapshot).await {
                    Ok(()) => Vec::new(),
                    Err(error) => vec![error.to_string()],
                };
            }
        }
    }
}

/// Brings everything up to date. Parts that the token may not see are left out.
pub async fn refresh(client: &Client, snapshot: &mut Snapshot) -> Result<(), ApiError> {
    let after = snapshot.events.last().map(|event| event.seq);
    let (cluster, hosts, vms, migrations, events) = tokio::join!(
        client.cluster(),
        client.of::<Host>().all(),
        client.of::<Vm>().all(),
        client.of::<MigrationRecord>().all(),
        new_events(client, after),
    );
    snapshot.cluster = if_allowed(cluster)?;
    snapshot.hosts = if_allowed(hosts)?.map(|list| list.items).unwrap_or_default();
    snapshot.vms = vms?.items;
    snapshot.vms.sort_by(|a, b| (&a.host, &a.tenant, &a.name).cmp(&(&b.host, &b.tenant, &b.name)));
    snapshot.migrations = migrations?.items;
    for event in events? {
        snapshot.push_event(event);
    }
    snapshot.now_ms = snapshot.cluster.as_ref().map_or_else(local_now_ms, |cluster| cluster.now_ms);
    snapshot.note_trends();
    Ok(())
}

async fn new_events(client: &Client, after: Option<EventSeq>) -> Result<Vec<drover_api::v1::EventView>, ApiError> {
    let after = after.map(|seq| seq.0);
    let query = EventQuery { after, limit: Some(Snapshot::EVENTS_MAX), ..EventQuery::default() };
    Ok(client.events(&query).await?.items)
}

/// `None` for what belongs to operators when a tenant asks.
fn if_allowed<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ApiError::Problem(problem)) if problem.status == 403 => Ok(None),
        Err(error) => Err(error),
    }
}

fn local_now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Reading the terminal blocks, so it has a thread; it ends with the receiver.
fn read_keys() -> mpsc::Receiver<Key> {
    let (send, receive) = mpsc::channel(KEYS_WAITING_MAX);
    std::thread::spawn(move || {
        while !send.is_closed() {
            let key = match event::poll(KEY_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            match key {
                Ok(event) => {
                    if let Some(key) = meaning(&event)
                        && send.blocking_send(key).is_err()
                    {
                        return;
                    }
                }
                // The terminal is gone; the closed channel ends the screen.
                Err(_) => return,
            }
        }
    });
    receive
}

fn meaning(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Resize(..) => return Some(Key::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Tab | KeyCode::BackTab => Some(Key::NextPart),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Scroll(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Scroll(1)),
        KeyCode::PageUp => Some(Key::Scroll(-PAGE_ROWS)),
        KeyCode::PageDown => Some(Key::Scroll(PAGE_ROWS)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn keys_mean_what_the_help_says() {
        let press = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Some(Key::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(press(KeyCode::Tab, KeyModifiers::NONE), Some(Key::NextPart));
        assert_eq!(press(KeyCode::PageDown, KeyModifiers::NONE), Some(Key::Scroll(PAGE_ROWS)));
        assert_eq!(meaning(&Event::Resize(1, 1)), Some(Key::Redraw));
    }
}
