//! What the paper's simulator (its release 3.0.3, vms in byte order of their names) says of some days and policies.

use super::figures::Row;
use serde::Serialize;

/// Farther off than this part is not met.
const OFF_MAX: f64 = 0.01;

/// The figures that are known of a day and policy.
const FIGURES: [&str; 6] = ["kwh", "migrations", "slatah", "pdm", "slav", "esv"];

struct Known {
    day: &'static str,
    policy: &'static str,
    figures: [f64; 6],
}

#[rustfmt::skip]
static KNOWN: [Known; 12] = [
    known("20110303", "A LR-MMT-1.2", [163.47721709836688, 27859.0, 0.05857947786, 7.927465738e-4, 4.643868037e-5, 7.591666232e-3]),
    known("20110303", "A THR-MMT-0.8", [192.6230702104301, 26711.0, 0.04913283229, 6.463667653e-4, 3.175782600e-5, 6.117289948e-3]),
    known("20110303", "A IQR-MMT-1.5", [189.98007272498137, 26282.0, 0.04822550318, 6.235223718e-4, 3.006968012e-5, 5.712640016e-3]),
    known("20110303", "A MAD-MMT-2.5", [185.79167331176743, 26556.0, 0.05048818170, 6.618525864e-4, 3.341573364e-5, 6.208365068e-3]),
    known("20110303", "A LR-MU-1.2", [175.6003031133715, 30166.0, 0.08151816949, 7.517147331e-4, 6.127840902e-5, 1.076050752e-2]),
    known("20110322", "A LR-MMT-1.2", [177.47790502761035, 32038.0, 0.06128427087, 7.577417890e-4, 4.643765305e-5, 8.241657378e-3]),
    known("20110420", "A LR-MMT-1.2", [130.8967704054016, 24400.0, 0.07464725693, 9.113659278e-4, 6.803096657e-5, 8.905033812e-3]),
    known("20110303", "B LR-MMT-1.2", [123.87385507229348, 10854.0, 0.04280787334, 2.670327106e-4, 1.143110245e-5, 1.416014729e-3]),
    known("20110303", "B LR-MMT-1.3", [130.69225805979838, 11053.0, 0.03337900751, 2.523802979e-4, 8.424203857e-6, 1.100978224e-3]),
    known("20110322", "B LR-MMT-1.2", [121.99095932196484, 15079.0, 0.05442907274, 3.461647453e-4, 1.884142610e-5, 2.298483645e-3]),
    known("20110420", "B LR-MMT-1.2", [89.49231607274974, 11665.0, 0.07720267380, 4.628823448e-4, 3.573575467e-5, 3.198075452e-3]),
    known("20110303", "no migration", [802.7544918889142, 0.0, 0.0, 0.0, 0.0, 0.0]),
];

const fn known(day: &'static str, policy: &'static str, figures: [f64; 6]) -> Known {
    Known { day, policy, figures }
}

/// One figure of one day and policy.
#[derive(Debug, Serialize)]
pub struct Check {
    pub day: String,
    pub policy: String,
    pub figure: &'static str,
    pub expected: f64,
    pub got: f64,
    pub met: bool,
}

/// Of all rows that something is known of.
pub fn check(rows: &[Row]) -> Vec<Check> {
    let known_of = |row: &Row| KNOWN.iter().find(|known| known.day == row.day && known.policy == row.policy);
    rows.iter().filter_map(|row| known_of(row).map(|known| known.against(row))).flatten().collect()
}

impl Known {
    fn against(&self, row: &Row) -> [Check; 6] {
        let got = [row.kwh, row.migrations as f64, row.slatah, row.pdm, row.slav, row.esv];
        std::array::from_fn(|ix| {
            let (figure, expected, got) = (FIGURES[ix], self.figures[ix], got[ix]);
            let met = (got - expected).abs() <= OFF_MAX * expected;
            Check { day: row.day.clone(), policy: row.policy.clone(), figure, expected, got, met }
        })
    }
}

#[cfg(test)]
pub fn policies() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.policy)
}
