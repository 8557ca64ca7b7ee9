//! Draws a [`Snapshot`]. Pure: the same values give the same cells.
//!
//! ```text
//!  banner (if any)
//!  header: scenario and why · mode, revision, time
//!  hosts:  one line each, bars of processor wanted and memory promised, trend
//!  vms
//!  migrations that run
//!  events, newest last
//! ```

use super::snapshot::{Focus, Snapshot, View, cpu_wanted_share, memory_share};
use crate::cli::show;
use drover_api::v1::{HostView, MigrationView, VmView};
use drover_model::event::Severity;
use drover_model::plan::{Heat, Scenario};
use drover_model::world::HostState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

const CPU_BAR_CELLS: usize = 20;
const MEMORY_BAR_CELLS: usize = 10;
const PROGRESS_BAR_CELLS: usize = 20;
const TREND_CELLS: usize = 30;
const TREND_LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Lines of events that stay on the screen however many vms there are.
const EVENT_LINES_MIN: usize = 4;

/// Draws the whole frame.
pub fn render(frame: &mut Frame, snapshot: &Snapshot, view: &View) {
    let hosts = hosts(snapshot);
    let migrations = migrations(snapshot);
    let banner: Vec<Line> = snapshot
        .banner
        .iter()
        .map(|line| Line::styled(line.clone(), Style::new().add_modifier(Modifier::BOLD)))
        .collect();
    let height = usize::from(frame.area().height);
    let fixed = banner.len() + 2 + hosts.len() + migrations.len() + EVENT_LINES_MIN + 1;
    let vms = vms(snapshot, view, height.saturating_sub(fixed));
    let areas = Layout::vertical([
        rows(&banner),
        Constraint::Length(2),
        rows(&hosts),
        rows(&vms),
        rows(&migrations),
        Constraint::Min(1),
    ])
    .split(frame.area());
    let events = events(snapshot, view, usize::from(areas[5].height));
    let parts = [banner, header(snapshot, frame.area().width), hosts, vms, migrations, events];
    for (mut lines, area) in parts.into_iter().zip(areas.iter()) {
        if view.plain {
            lines.iter_mut().for_each(without_colours);
        }
        frame.render_widget(Paragraph::new(lines), *area);
    }
}

fn rows(lines: &[Line]) -> Constraint {
    Constraint::Length(lines.len().try_into().unwrap_or(u16::MAX))
}

fn without_colours(line: &mut Line) {
    let plain = |style: &mut Style| *style = Style::new().add_modifier(style.add_modifier);
    plain(&mut line.style);
    line.spans.iter_mut().for_each(|span| plain(&mut span.style));
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn heading(text: String, focused: bool) -> Line<'static> {
    let style = Style::new().add_modifier(Modifier::BOLD);
    Line::styled(text, if focused { style.add_modifier(Modifier::UNDERLINED) } else { style })
}

fn header(snapshot: &Snapshot, width: u16) -> Vec<Line<'static>> {
    let clock = show::clock(snapshot.now_ms);
    let Some(cluster) = &snapshot.cluster else {
        return vec![Line::raw(format!("drover  {clock}"))];
    };
    let scenario = cluster.scenario.map_or("unknown".to_owned(), |scenario| scenario.to_string());
    let colour = match cluster.scenario {
        Some(Scenario::Balanced) => Color::Green,
        Some(Scenario::Hotspot | Scenario::Saturated | Scenario::Degraded) => Color::Red,
        Some(Scenario::Mixed) => Color::Yellow,
        Some(Scenario::Underused) => Color::Cyan,
        None => Color::Reset,
    };
    let left = vec![
        Span::raw("drover  "),
        Span::styled(scenario, Style::new().fg(colour).add_modifier(Modifier::BOLD)),
        Span::raw("  "),
        Span::raw(cluster.why.clone().unwrap_or_default()),
    ];
    let right = format!("  mode {}  revision {}  {clock}", show::word(&cluster.mode), cluster.revision);
    let used: usize = left.iter().map(Span::width).sum();
    let room = usize::from(width).saturating_sub(right.chars().count());
    let mut line = Line::from(left);
    if used <= room {
        line.push_span(Span::raw(" ".repeat(room - used)));
        line.push_span(Span::styled(right, dim()));
        return vec![line, Line::default()];
    }
    vec![line, Line::styled(right.trim_start().to_owned(), dim())]
}

fn hosts(snapshot: &Snapshot) -> Vec<Line<'static>> {
    if snapshot.hosts.is_empty() {
        return Vec::new();
    }
    let head = format!(
        "{:<12} {:<13} {:<cpu$} {:<memory$} {:>4}  {}",
        "HOST",
        "STATE",
        "CPU WANTED",
        "MEMORY PROMISED",
        "VMS",
        "TREND",
        cpu = CPU_BAR_CELLS + 19,
        memory = MEMORY_BAR_CELLS + 7,
    );
    let mut lines = vec![heading(head, false)];
    lines.extend(snapshot.hosts.iter().map(|host| host_line(snapshot, host)));
    lines.push(Line::default());
    lines
}

fn host_line(snapshot: &Snapshot, host: &HostView) -> Line<'static> {
    let heat = match host.heat {
        Heat::Hot => Color::Red,
        Heat::Warm => Color::Green,
        Heat::Cold => Color::Cyan,
        Heat::Unknown => Color::DarkGray,
    };
    let state_colour = match host.state {
        HostState::Up if host.maintenance => Color::Yellow,
        HostState::Up => Color::Green,
        HostState::Suspect | HostState::Waking | HostState::FallingAsleep => Color::Yellow,
        HostState::Down => Color::Red,
        HostState::Asleep | HostState::Unknown => Color::DarkGray,
    };
    let mut spans = vec![
        Span::raw(format!("{:<12} ", show::shortened(host.id.as_str(), 12))),
        Span::styled(format!("{:<13} ", show::host_state(host)), Style::new().fg(state_colour)),
    ];
    match (cpu_wanted_share(host), host.load, host.capacity) {
        (Some(share), Some(load), Some(capacity)) => {
            spans.push(Span::styled(bar(share, CPU_BAR_CELLS), Style::new().fg(heat)));
            let cores = |millis: u64| millis as f64 / 1000.0;
            let figures = format!(
                " {:>4} {:>5.2} of {:<5.2}",
                percent(share),
                cores(load.cpu_wanted_millis),
                cores(capacity.cpu_millis)
            );
            spans.push(Span::raw(format!("{figures:<19.19}")));
        }
        _ => spans.push(Span::styled(format!("{:<cells$}", "no load known", cells = CPU_BAR_CELLS + 19), dim())),
    }
    spans.push(Span::raw(" "));
    match memory_share(host) {
        Some(share) => {
            spans.push(Span::raw(bar(share, MEMORY_BAR_CELLS)));
            spans.push(Span::raw(format!(" {:>5} ", percent(share))));
        }
        None => spans.push(Span::raw(" ".repeat(MEMORY_BAR_CELLS + 7))),
    }
    spans.push(Span::raw(format!(" {:>4}  ", host.vms.len())));
    spans.push(Span::styled(trend(snapshot.trend(&host.id)), Style::new().fg(heat)));
    Line::from(spans)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// Full cells for what is used; a share above 1 fills the bar.
fn bar(share: f64, cells: usize) -> String {
    let full = ((share * cells as f64).round() as usize).min(cells);
    "█".repeat(full) + &"░".repeat(cells - full)
}

/// The newest last; 1.0 is the highest level.
fn trend(shares: impl Iterator<Item = f64>) -> String {
    let top = TREND_LEVELS.len() - 1;
    let levels: Vec<char> =
        shares.map(|share| TREND_LEVELS[((share.max(0.0) * top as f64).round() as usize).min(top)]).collect();
    levels[levels.len().saturating_sub(TREND_CELLS)..].iter().collect()
}

fn vms(snapshot: &Snapshot, view: &View, room: usize) -> Vec<Line<'static>> {
    if snapshot.vms.is_empty() {
        return vec![Line::styled("no vms", dim()), Line::default()];
    }
    let head = format!(
        "{:<24} {:<10} {:<12} {:>10} {:>10} {:>5}  {}",
        "VM", "STATE", "HOST", "CPU WANTED", "MEMORY", "VCPUS", "MOVED"
    );
    let mut lines = vec![heading(head, view.focus == Focus::Vms)];
    // One line for the heading, one to say how many are not shown, one empty.
    let shown = room.saturating_sub(3).max(1);
    let from = view.vms_from.min(snapshot.vms.len().saturating_sub(shown));
    lines.extend(snapshot.vms.iter().skip(from).take(shown).map(|vm| vm_line(vm, snapshot.now_ms)));
    let rest = snapshot.vms.len().saturating_sub(from + shown);
    if from > 0 || rest > 0 {
        lines.push(Line::styled(format!("{from} above, {rest} below"), dim()));
    }
    lines.push(Line::default());
    lines
}

fn vm_line(vm: &VmView, now_ms: u64) -> Line<'static> {
    let colour = match vm.phase.as_str() {
        "running" => Color::Green,
        "migrating" => Color::Magenta,
        "failed" => Color::Red,
        "stopped" => Color::DarkGray,
        _ => Color::Yellow,
    };
    let wanted = vm.load.map_or("-".to_owned(), |load| show::cores(load.cpu_wanted_millis));
    let moved = match (&vm.moved_from, vm.moved_at_ms) {
        (Some(from), Some(at)) => format!("from {from}, {}", show::ago(now_ms, at)),
        _ => String::new(),
    };
    Line::from(vec![
        Span::raw(format!("{:<24} ", show::shortened(&format!("{}/{}", vm.tenant, vm.name), 24))),
        Span::styled(format!("{:<10} ", vm.phase), Style::new().fg(colour)),
        Span::raw(format!("{:<12} ", show::shortened(vm.host.as_ref().map_or("-", |host| host.as_str()), 12))),
        Span::raw(format!("{wanted:>10} {:>6} MiB {:>5}  ", vm.memory_mib, vm.vcpus)),
        Span::styled(moved, dim()),
    ])
}

fn migrations(snapshot: &Snapshot) -> Vec<Line<'static>> {
    let mut running = snapshot.migrations.iter().filter(|migration| !migration.over).peekable();
    if running.peek().is_none() {
        return Vec::new();
    }
    let mut lines = vec![heading("MIGRATIONS".to_owned(), false)];
    lines.extend(running.map(migration_line));
    lines.push(Line::default());
    lines
}

fn migration_line(migration: &MigrationView) -> Line<'static> {
    let vm = migration.vm_name.as_ref().map_or(migration.vm.as_str(), |name| name.as_str());
    let mut spans = vec![
        Span::raw(format!("{:>5} {:<18} ", migration.id, show::shortened(vm, 18))),
        Span::raw(format!("{:<14} ", show::shortened(&format!("{} → {}", migration.from, migration.to), 14))),
    ];
    match &migration.progress {
        Some(progress) => {
            let share = show::migration_share(progress);
            spans.push(Span::styled(bar(share, PROGRESS_BAR_CELLS), Style::new().fg(Color::Magenta)));
            spans.push(Span::raw(format!(" {:>4} {}", percent(share), show::progress(progress))));
        }
        None => spans.push(Span::styled(migration.phase.clone(), dim())),
    }
    Line::from(spans)
}

fn events(snapshot: &Snapshot, view: &View, height: usize) -> Vec<Line<'static>> {
    let shown = height.saturating_sub(1);
    let end = snapshot.events.len().saturating_sub(view.events_back);
    let from = end.saturating_sub(shown);
    let newer = snapshot.events.len() - end;
    let title = if newer > 0 { format!("EVENTS ({newer} newer below)") } else { "EVENTS".to_owned() };
    let mut lines = vec![heading(title, view.focus == Focus::Events)];
    lines.extend(snapshot.events[from..end].iter().map(|event| {
        let colour = match event.severity {
            Severity::Info => Color::Reset,
            Severity::Warning => Color::Yellow,
            Severity::Escalation => Color::Red,
        };
        Line::from(vec![
            Span::styled(format!("{} ", show::clock(event.at_ms)), dim()),
            Span::styled(format!("{:<10} ", event.severity), Style::new().fg(colour)),
            Span::raw(format!("{:<20} {}", event.object, event.text)),
        ])
    }));
    lines
}

#[cfg(test)]
fn drawn(snapshot: &Snapshot, view: &View, width: u16, height: u16) -> String {
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| render(frame, snapshot, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let area = ratatui::layout::Rect::new(0, 0, width, height);
    area.rows()
        .map(|row| {
            let line: String = row.columns().map(|cell| buffer[(cell.x, cell.y)].symbol()).collect();
            line.trim_end().to_owned() + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{cluster_view, host_view, migration_view, vm_view};
    use drover_api::v1::ProgressView;

    fn snapshot() -> Snapshot {
        let mut asleep = host_view("h2");
        (asleep.state, asleep.heat, asleep.load, asleep.memory_promised_mib) =
            (HostState::Asleep, Heat::Unknown, None, 0);
        asleep.vms.clear();
        let mut moving = vm_view("web-2");
        (moving.phase, moving.moved_from) = ("migrating".to_owned(), None);
        let progress = ProgressView {
            transferred_bytes: 80 << 20,
            remaining_bytes: 32 << 20,
            total_bytes: 128 << 20,
            rounds: 2,
            dirty_bytes_s: 5 << 20,
            throughput_bytes_s: 40 << 20,
            throttled_percent: 0,
        };
        let mut snapshot = Snapshot {
            now_ms: 1_795_294_070_000,
            cluster: Some(cluster_view()),
            hosts: vec![host_view("h1"), asleep],
            vms: vec![vm_view("web-1"), moving],
            migrations: vec![
                MigrationView { over: false, report: None, progress: Some(progress), ..migration_view() },
                MigrationView { over: true, ..migration_view() },
            ],
            ..Snapshot::default()
        };
        for (seq, severity) in ["info", "warning", "escalation"].into_iter().enumerate() {
            let event = serde_json::json!({
                "seq": seq, "at_ms": 1_795_294_060_000_u64 + seq as u64 * 1000, "severity": severity,
                "object": "host/h1", "tenant": null, "kind": "k", "text": format!("event {seq}"),
            });
            snapshot.push_event(serde_json::from_value(event).unwrap());
        }
        for wanted in [100, 400, 900, 1300, 1500, 2000] {
            snapshot.hosts[0].load.as_mut().unwrap().cpu_wanted_millis = wanted;
            snapshot.note_trends();
        }
        snapshot
    }

    #[test]
    fn the_screen_shows_hosts_vms_migrations_and_events() {
        insta::assert_snapshot!(drawn(&snapshot(), &View::default(), 130, 24));
    }

    #[test]
    fn a_tenant_sees_its_vms_without_the_hosts() {
        let mut own = snapshot();
        (own.cluster, own.hosts) = (None, Vec::new());
        insta::assert_snapshot!(drawn(&own, &View::default(), 100, 16));
    }

    #[test]
    fn a_banner_stands_above_everything() {
        let mut demo = snapshot();
        demo.banner = vec!["2 of 4: load falls, hosts are emptied".to_owned()];
        let screen = drawn(&demo, &View::default(), 130, 24);
        assert!(screen.starts_with("2 of 4: load falls, hosts are emptied\ndrover  hotspot"), "{screen}");
    }

    #[test]
    fn more_vms_than_rows_can_be_scrolled_to() {
        let mut many = snapshot();
        many.vms = (0..50).map(|n| vm_view(&format!("web-{n}"))).collect();
        let mut view = View::default();
        let first = drawn(&many, &view, 130, 24);
        assert!(first.contains("acme/web-0 ") && !first.contains("acme/web-49"), "{first}");
        view.scroll(1000, &many);
        let last = drawn(&many, &view, 130, 24);
        assert!(last.contains("acme/web-49") && last.contains("0 below"), "{last}");
        assert!(last.contains("event 2"), "events keep their room: {last}");
    }

    #[test]
    fn any_terminal_size_is_drawn_without_a_panic() {
        for (width, height) in [(1, 1), (20, 3), (80, 8), (400, 100)] {
            drawn(&snapshot(), &View::default(), width, height);
            drawn(&Snapshot::default(), &View::default(), width, height);
        }
    }

    #[test]
    fn bars_and_trends_stay_within_their_cells() {
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(7.0, 4), "████");
        assert_eq!(trend([0.0, 0.5, 1.0, 9.0].into_iter()), "▁▅██");
        assert_eq!(trend(std::iter::repeat_n(0.0, 100)).chars().count(), TREND_CELLS);
    }
}
