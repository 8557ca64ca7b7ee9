//! What the operator says of a host and no agent can know.

use super::schema;
use crate::intent::HostAttributes as ModelAttributes;
use crate::policy::PowerCurve;
use crate::{BadName, Bytes, Label, MicroMoney, RackId, ZoneId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// `null` is: not said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HostAttributes {
    /// Hosts that may fail together, for want of power or a switch. A host without one is a rack of its own.
    pub rack: Option<String>,
    /// Racks that share a site.
    pub zone: Option<String>,
    /// Words for sets of hosts: a licence, a kind of hardware. At most 64.
    pub labels: BTreeSet<String>,
    /// Room for the disks that vms have on the host itself; `null`: not limited.
    pub disk_mib: Option<u64>,
    /// What its link carries, each way; `null`: not limited.
    #[schema(minimum = 1)]
    pub link_bytes_s: Option<u64>,
    /// Watts at 0, 10, ... 100 % of its processor, none below the one before it; `null`: as the policy says of any host.
    #[schema(schema_with = schema::power_curve)]
    pub power_curve_watts: Option<[f64; 11]>,
    /// Wear of switching it off and on once; `null`: as the policy says.
    #[schema(minimum = 0)]
    pub power_cycle_price_micro: Option<i64>,
}

/// Why attributes make no sense: the field, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadAttributes {
    pub field: &'static str,
    pub problem: String,
}

impl HostAttributes {
    /// As the model has them, if every name is one.
    pub fn checked(&self) -> Result<ModelAttributes, BadAttributes> {
        fn name<T: std::str::FromStr<Err = BadName>>(field: &'static str, text: &str) -> Result<T, BadAttributes> {
            text.parse().map_err(|error: BadName| BadAttributes { field, problem: error.to_string() })
        }
        let disk = self.disk_mib.map(|mib| mib.checked_mul(1 << 20).map(Bytes));
        if disk == Some(None) {
            return Err(BadAttributes { field: "disk_mib", problem: "is more than can be counted".to_owned() });
        }
        Ok(ModelAttributes {
            rack: self.rack.as_deref().map(|rack| name::<RackId>("rack", rack)).transpose()?,
            zone: self.zone.as_deref().map(|zone| name::<ZoneId>("zone", zone)).transpose()?,
            labels: self.labels.iter().map(|label| name::<Label>("labels", label)).collect::<Result<_, _>>()?,
            disk: disk.flatten(),
            link: self.link_bytes_s.map(Bytes),
            power: self.power_curve_watts.map(PowerCurve),
            power_cycle_price: self.power_cycle_price_micro.map(MicroMoney),
        })
    }
}

impl From<&ModelAttributes> for HostAttributes {
    fn from(said: &ModelAttributes) -> Self {
        let ModelAttributes { rack, zone, labels, disk, link, power, power_cycle_price } = said.clone();
        Self {
            rack: rack.map(String::from),
            zone: zone.map(String::from),
            labels: labels.into_iter().map(String::from).collect(),
            disk_mib: disk.map(|disk| disk.0 >> 20),
            link_bytes_s: link.map(|link| link.0),
            power_curve_watts: power.map(|curve| curve.0),
            power_cycle_price_micro: power_cycle_price.map(|price| price.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_say_the_same_as_the_model_and_back() {
        let wire = HostAttributes {
            rack: Some("r1".to_owned()),
            zone: Some("z1".to_owned()),
            labels: ["ssd".to_owned()].into(),
            disk_mib: Some(7),
            link_bytes_s: Some(8),
            power_curve_watts: Some([9.0; 11]),
            power_cycle_price_micro: Some(10),
        };
        assert_eq!(HostAttributes::from(&wire.checked().unwrap()), wire);
        assert_eq!(HostAttributes { rack: Some("R 1".to_owned()), ..wire }.checked().unwrap_err().field, "rack");
    }
}
