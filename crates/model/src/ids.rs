//! Identities. Each is a type of its own, so that a host can never be passed where a vm is meant.
//!
//! Names are checked where they enter: a value of these types is well-formed by construction, in
//! memory, on the wire and in the store.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Why a name was refused. Shown to people as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {value:?} is not a valid name: use 1 to 63 lower-case letters, digits and hyphens, \
     beginning and ending with a letter or digit"
)]
pub struct BadName {
    pub what: &'static str,
    pub value: String,
}

/// A DNS label (RFC 1123 section 2.1): names travel into host names, file names and URLs.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
}

/// The same rule for programs, as OpenAPI has it.
fn name_schema(what: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))
        .min_length(Some(1))
        .max_length(Some(63))
        .description(Some(format!("A {what}: lower-case letters, digits and hyphens")))
        .into()
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                if is_label(text) {
                    Ok(Self(text.into()))
                } else {
                    // Long input is cut: the message goes back to whoever sent it.
                    Err(BadName { what: $what, value: text.chars().take(80).collect() })
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                name_schema($what)
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

name_type!(
    /// A physical server, by its name in the cluster; also the common name of its certificate.
    HostId, "host");
name_type!(
    /// A virtual server's identity. Made by the server (`vm-` and 12 random letters), survives every move, never reused.
    VmId, "vm id");
name_type!(
    /// A virtual server's name, unique within its tenant.
    VmName, "vm name");
name_type!(
    /// A cloud consumer's name, unique among the tenants that there are now.
    TenantName, "tenant");
name_type!(
    /// A cloud consumer's identity. Made by the server (`tn-` and 12 random letters) and never used again: a tenant that is
    /// made again under an old name is another tenant.
    TenantId, "tenant id");
name_type!(
    /// An image that vms are created from.
    ImageId, "image");
name_type!(
    /// A network that vms are attached to. A provider network's is the name under which hosts map it to one of their
    /// bridges; an overlay's is made by the server (`net-` and 12 random letters).
    NetworkId, "network");
name_type!(
    /// An overlay network's name, unique within its tenant.
    NetworkName, "network name");
name_type!(
    /// A security group, by its name within its tenant.
    SecurityGroupId, "security group");
name_type!(
    /// A host's own port on an overlay network, by its name in the cluster.
    PortId, "port");
name_type!(
    /// An anti-affinity group: two vms of one group and one tenant never share a host.
    GroupId, "group");
name_type!(
    /// A rack: hosts that may fail together, for want of power or a switch.
    RackId, "rack");
name_type!(
    /// A zone: racks that share a site.
    ZoneId, "zone");
name_type!(
    /// A word that hosts carry, for sets of hosts: a licence, a kind of hardware.
    Label, "label");
name_type!(
    /// A rule of placement, by its name in the cluster.
    RuleId, "placement rule");
name_type!(
    /// A resource pool, by its name in the cluster.
    PoolId, "pool");
name_type!(
    /// The public part of an API token or join token: names it without giving it away.
    TokenId, "token");

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number_type!(
    /// The right to run a vm. Raised by compare-and-swap each time the right moves; a command that
    /// carries an older one is refused by the agent. 0 means never placed.
    Generation
);
number_type!(
    /// The store's change counter; each object carries the one that last changed it.
    Revision
);
number_type!(PlanId);
number_type!(MigrationId);
number_type!(
    /// One command to one agent. Unique within one run of the server.
    CommandId
);
number_type!(
    /// One entry of the event log.
    EventSeq
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web-3", "0", "a-b-c", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "é", "../etc", &"x".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_on_the_wire_too() {
        let error = serde_json::from_str::<HostId>("\"no/slash\"").unwrap_err().to_string();
        assert!(error.contains("host \"no/slash\" is not a valid name"), "{error}");
    }
}
