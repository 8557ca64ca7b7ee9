//! Recorded migrations, and what of each was known before it began.

use anyhow::{Context, Result, bail, ensure};
use drover_model::migration::{
    MigrationPhase, MigrationRecord, MigrationReport, Prediction, Priority, Strategy, Writing,
};
use drover_model::{Bytes, Generation, HostId, MigrationId, Millis, TimeMs, VmId};
use drover_planner::predict::{Features, goodput};

#[cfg(test)]
pub const HEADER: &str = "run,instance,vm,mem_mb,dirty_rate_mb_s,hot_dirty_mb,hot_dirty_s,bw_mbit,start_s,end_s,actual_s,plan_start_s,plan_end_s";

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub run: u64,
    pub instance: u64,
    pub vm: u64,
    /// "MB" in the data are the hypervisor's: 2^20 bytes.
    pub memory_mib: f64,
    pub dirty_rate_mib_s: f64,
    pub hot_mib: f64,
    pub hot_s: f64,
    /// What the move was given, on the wire.
    pub bandwidth_mbit: f64,
    pub start_s: f64,
    /// Measured: what is to be predicted.
    pub actual_s: f64,
    /// What the planner of the recording had predicted.
    pub planned_s: f64,
}

/// Rows in the order in which they began.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().context("it is empty")?;
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let column =
        |name: &str| names.iter().position(|known| *known == name).with_context(|| format!("it has no column {name}"));
    let wanted = ["run", "instance", "vm", "mem_mb", "dirty_rate_mb_s", "hot_dirty_mb", "hot_dirty_s", "bw_mbit"];
    let wanted = wanted.into_iter().chain(["start_s", "actual_s", "plan_start_s", "plan_end_s"]);
    let columns: Vec<usize> = wanted.map(column).collect::<Result<_>>()?;
    let mut rows: Vec<Row> = lines
        .map(|(ix, line)| row(line, &names, &columns).with_context(|| format!("line {}", ix + 1)))
        .collect::<Result<_>>()?;
    if rows.is_empty() {
        bail!("it has a header and no rows");
    }
    rows.sort_by(|a, b| {
        a.start_s.total_cmp(&b.start_s).then((a.run, a.instance, a.vm).cmp(&(b.run, b.instance, b.vm)))
    });
    Ok(rows)
}

fn row(line: &str, names: &[&str], columns: &[usize]) -> Result<Row> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    ensure!(fields.len() == names.len(), "has {} fields and the header {}", fields.len(), names.len());
    let mut values = [0.0f64; 12];
    for (value, column) in values.iter_mut().zip(columns) {
        let field = fields[*column];
        *value = field.parse().with_context(|| format!("{} is {field:?}, not a number", names[*column]))?;
        ensure!(value.is_finite() && *value >= 0.0, "{} is {field}: it can't be negative", names[*column]);
    }
    let [
        run,
        instance,
        vm,
        memory_mib,
        dirty_rate_mib_s,
        hot_mib,
        hot_s,
        bandwidth_mbit,
        start_s,
        actual_s,
        from_s,
        to_s,
    ] = values;
    ensure!(memory_mib > 0.0 && bandwidth_mbit > 0.0 && actual_s > 0.0, "memory, bandwidth and time can't be 0");
    Ok(Row {
        run: run as u64,
        instance: instance as u64,
        vm: vm as u64,
        memory_mib,
        dirty_rate_mib_s,
        hot_mib,
        hot_s,
        bandwidth_mbit,
        start_s,
        actual_s,
        planned_s: to_s - from_s,
    })
}

fn mib(count: f64) -> Bytes {
    Bytes::MIB.scale(count)
}

impl Row {
    /// What was known before the move. The data names no hosts: all moves are over one pair.
    pub fn features(&self) -> Features {
        Features {
            vm: id(&format!("instance-{}-vm-{}", self.instance, self.vm)),
            from: host("source"),
            to: host("destination"),
            in_use: mib(self.memory_mib),
            writing: Some(Writing {
                hot: mib(self.hot_mib),
                hot_span: Millis((self.hot_s * 1000.0) as u64),
                rate: mib(self.dirty_rate_mib_s),
            }),
            bandwidth: Some(goodput((self.bandwidth_mbit * 1e6) as u64)),
        }
    }

    /// The data does not say how long a guest was allowed to stand still. Its planner takes the hot set as what is
    /// left for the stop, and so does this.
    pub fn downtime_max(&self) -> Millis {
        let bandwidth = goodput((self.bandwidth_mbit * 1e6) as u64);
        Millis((mib(self.hot_mib).0 as f64 / bandwidth.0 as f64 * 1000.0).ceil() as u64)
    }

    /// As the product would have stored it. Of the outcome the data has the total time only.
    pub fn record(&self, prediction: Prediction) -> MigrationRecord {
        let features = self.features();
        let total = Millis((self.actual_s * 1000.0) as u64);
        let report =
            MigrationReport { predicted_total: prediction.total.expected, total, ..MigrationReport::default() };
        let started_at = TimeMs((self.start_s * 1000.0) as u64);
        MigrationRecord {
            id: MigrationId(0),
            vm: features.vm,
            from: features.from,
            to: features.to,
            generation: Generation(1),
            plan: None,
            reason: String::new(),
            started_at,
            phase: MigrationPhase::Done,
            strategy: Strategy::PRE_COPY,
            prediction: Some(prediction),
            priority: Priority::Normal,
            paused: false,
            cancelled_by: None,
            finished_at: Some(started_at.plus(total)),
            report: Some(report),
        }
    }
}

fn id(name: &str) -> VmId {
    name.parse().expect("letters, digits and dashes are an id")
}

fn host(name: &str) -> HostId {
    name.parse().expect("letters are an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_by_their_columns_names_and_sorted_by_their_start() {
        let text =
            format!("{HEADER}\n1,5,7,3000,2.0,96,2,1000,200,234,34,0,29\n2,5,7,2000,2.0,96,2,500,100,139,39,10,61\n");
        let rows = parse(&text).unwrap();
        assert_eq!((rows[0].run, rows[0].actual_s, rows[0].planned_s), (2, 39.0, 51.0));
        let features = rows[1].features();
        assert_eq!((features.in_use, features.bandwidth), (Bytes::mib(3000), Some(Bytes(117_685_305))));
        assert_eq!(rows[1].downtime_max(), Millis(856));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_place() {
        let wrong = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert_eq!(wrong(""), "it is empty");
        assert_eq!(wrong("run,instance\n1,1\n"), "it has no column vm");
        assert_eq!(wrong(HEADER), "it has a header and no rows");
        assert_eq!(wrong(&format!("{HEADER}\n1,2,3")), "line 2: has 3 fields and the header 13");
        let text = format!("{HEADER}\n1,5,7,x,2.0,96,2,1000,200,234,34,0,29");
        assert!(wrong(&text).starts_with("line 2: mem_mb is \"x\", not a number"), "{}", wrong(&text));
        let text = format!("{HEADER}\n1,5,7,3000,2.0,96,2,1000,200,234,0,0,29");
        assert_eq!(wrong(&text), "line 2: memory, bandwidth and time can't be 0");
    }
}
