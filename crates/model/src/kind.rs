//! What every kind of object has in common: a name, a key, an owner, labels, references to other objects.
//!
//! A kind is one type of this crate. [`Kind`] says what the store, the indexes and the events need of it; [`Exposed`] adds
//! what the API, the typed client and the command line need. Behaviour (create, patch, remove) is `control`'s
//! (`control::kinds`). `docs/adding-a-kind.md` shows the whole way.

use crate::{Label, Revision, TenantName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// What the store, the indexes and the events need to know of an object.
pub trait Kind: Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// In the store, in events, metrics and texts: `security-group`.
    const NAME: &'static str;

    type Key: Ord + Clone + fmt::Debug + fmt::Display + FromStr + Send + Sync + 'static;

    fn key(&self) -> Self::Key;

    /// Whose it is. Decides who may see and change it.
    fn owner(&self) -> Owner<'_>;

    /// What people call it, unique within its owner. Its key is as good a name where there is no other.
    fn name(&self) -> String {
        self.key().to_string()
    }

    fn labels(&self) -> Option<&Labels> {
        None
    }

    /// Every object that this one can't be without, or works with: an object that others refer to can't be removed
    /// unless its kind says so, and "the vms on a host" is looked up here.
    fn references(&self) -> Vec<ObjectKey> {
        Vec::new()
    }

    /// The key that the store, the change log and the indexes use.
    fn object_key(&self) -> ObjectKey {
        ObjectKey::of::<Self>(&self.key())
    }
}

/// A kind that people and programs can see.
pub trait Exposed: Kind {
    /// Of one object, as a sentence names it: `security group`.
    const TITLE: &'static str;
    /// The path under `/v1/`: `security-groups`.
    const PLURAL: &'static str;
    /// The group of routes in the API's description.
    const TAG: &'static str;
    const ACCESS: Access;
    /// What `POST` takes.
    type Create: DeserializeOwned + Serialize + ToSchema + fmt::Debug + Clone + PartialEq + Send + Sync + 'static;
    /// What is shown.
    type View: DeserializeOwned + Serialize + ToSchema + fmt::Debug + Clone + PartialEq + Send + Sync + 'static;
    /// The part of an object that `PATCH` changes by a JSON merge patch (RFC 7396). [`Fixed`]: nothing of it.
    type Settings: DeserializeOwned + Serialize + ToSchema + fmt::Debug + Clone + PartialEq + Send + Sync + 'static;
    /// Whether the newest come first in lists.
    const NEWEST_FIRST: bool = false;
    /// Whether it can be made by `POST` alone. Some kinds come about otherwise, or need more than a body.
    const CREATABLE: bool = true;
    const PATCHABLE: bool = true;
    const REMOVABLE: bool = true;
    /// What `state` in a list's query may be; empty: the kind has no states.
    const STATES: &'static [&'static str] = &[];
}

/// The settings of a kind that never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fixed {}

/// An owner of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner<'a> {
    Cluster,
    Tenant(&'a TenantName),
}

impl<'a> Owner<'a> {
    pub fn tenant(self) -> Option<&'a TenantName> {
        match self {
            Self::Cluster => None,
            Self::Tenant(tenant) => Some(tenant),
        }
    }
}

/// Who may read and who may change the objects of a kind. Operators may always do both, viewers may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub read: Audience,
    pub write: Audience,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Operators,
    /// Operators, and the tenant that owns the object.
    Owner,
    /// Whoever holds a valid token.
    Everyone,
}

impl Access {
    pub const OPERATORS: Self = Self { read: Audience::Operators, write: Audience::Operators };
    pub const OWNER: Self = Self { read: Audience::Owner, write: Audience::Owner };
}

/// One object, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    /// [`Kind::NAME`].
    pub kind: Cow<'static, str>,
    /// [`Kind::key`] as text.
    pub id: String,
}

impl ObjectKey {
    pub fn of<K: Kind>(key: &K::Key) -> Self {
        Self { kind: Cow::Borrowed(K::NAME), id: key.to_string() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}

/// A key of objects whose names are unique within their tenant only; as text `tenant/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owned<N> {
    pub tenant: TenantName,
    pub name: N,
}

impl<N: fmt::Display> fmt::Display for Owned<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

impl<N: fmt::Display> fmt::Debug for Owned<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no [`Owned`] key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write it as TENANT/NAME: {0}")]
pub struct BadOwned(String);

impl<N: FromStr<Err: fmt::Display>> FromStr for Owned<N> {
    type Err = BadOwned;
    fn from_str(text: &str) -> Result<Self, BadOwned> {
        let (tenant, name) = text.split_once('/').ok_or_else(|| BadOwned(text.chars().take(160).collect()))?;
        let tenant = tenant.parse().map_err(|error: crate::BadName| BadOwned(error.to_string()))?;
        let name = name.parse().map_err(|error: N::Err| BadOwned(error.to_string()))?;
        Ok(Self { tenant, name })
    }
}

/// Words that people put on objects, to choose them by (`--selector env=prod`). At most [`Labels::MAX`]; a key is a name, a
/// value at most [`Labels::VALUE_MAX`] visible ASCII characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<Label, String>")]
pub struct Labels(BTreeMap<Label, String>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadLabels(String);

impl Labels {
    pub const MAX: usize = 64;
    pub const VALUE_MAX: usize = 63;

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Label, &str)> {
        self.0.iter().map(|(key, value)| (key, value.as_str()))
    }
}

impl TryFrom<BTreeMap<Label, String>> for Labels {
    type Error = BadLabels;
    fn try_from(labels: BTreeMap<Label, String>) -> Result<Self, BadLabels> {
        if labels.len() > Self::MAX {
            return Err(BadLabels(format!("{} labels; an object has {} at most", labels.len(), Self::MAX)));
        }
        let fits =
            |value: &str| value.len() <= Self::VALUE_MAX && value.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        match labels.iter().find(|(_, value)| !fits(value)) {
            Some((key, _)) => Err(BadLabels(format!(
                "the value of label {key}: at most {} visible ASCII characters, without commas",
                Self::VALUE_MAX
            ))),
            None => Ok(Self(labels)),
        }
    }
}

impl FromIterator<(Label, String)> for Labels {
    /// Of keys and values that are known to fit.
    fn from_iter<I: IntoIterator<Item = (Label, String)>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, value)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match value.as_str() {
                "" => write!(f, "{comma}{key}")?,
                value => write!(f, "{comma}{key}={value}")?,
            }
        }
        Ok(())
    }
}

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        let value = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[!-+--~]*$"))
            .max_length(Some(Self::VALUE_MAX));
        ObjectBuilder::new()
            .property_names(Some(<Label as PartialSchema>::schema().into_schema()))
            .additional_properties(Some(value))
            .max_properties(Some(Self::MAX))
            .description(Some("Words to choose objects by"))
            .into()
    }
}

impl ToSchema for Labels {}

/// `RefOr<Schema>` as a schema.
trait IntoSchema {
    fn into_schema(self) -> Schema;
}

impl IntoSchema for RefOr<Schema> {
    fn into_schema(self) -> Schema {
        match self {
            RefOr::T(schema) => schema,
            RefOr::Ref(_) => ObjectBuilder::new().schema_type(Type::String).into(),
        }
    }
}

/// Which labels an object must have: `env=prod,tier` asks for one label with a value and for another with any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<(Label, Option<String>)>);

impl Selector {
    pub fn matches(&self, labels: Option<&Labels>) -> bool {
        let has = |(key, wanted): &(Label, Option<String>)| {
            let value = labels.and_then(|labels| labels.0.get(key));
            value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        };
        self.0.iter().all(has)
    }
}

impl FromStr for Selector {
    type Err = crate::BadName;
    fn from_str(text: &str) -> Result<Self, crate::BadName> {
        let one = |word: &str| match word.split_once('=') {
            Some((key, value)) => Ok((key.parse()?, Some(value.to_owned()))),
            None => Ok((word.parse()?, None)),
        };
        text.split(',').filter(|word| !word.is_empty()).map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// An object that is shown as it is stored, with the revision that last changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    #[serde(flatten)]
    pub object: T,
    pub revision: Revision,
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T: ToSchema> PartialSchema for Versioned<T> {
    fn schema() -> RefOr<Schema> {
        let revision = ObjectBuilder::new()
            .property("revision", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)))
            .required("revision");
        AllOfBuilder::new().item(Ref::from_schema_name(T::name())).item(revision).into()
    }
}

impl<T: ToSchema> ToSchema for Versioned<T> {
    fn name() -> Cow<'static, str> {
        format!("{}View", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Result<Labels, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_selector_asks_for_keys_and_for_values() {
        let object = labels(r#"{"env": "prod", "tier": "web"}"#).unwrap();
        for (selector, matches) in
            [("env=prod", true), ("env", true), ("env=test", false), ("env=prod,tier=web", true), ("rack", false)]
        {
            let selector: Selector = selector.parse().unwrap();
            assert_eq!(selector.matches(Some(&object)), matches, "{selector:?}");
        }
        assert!("Env=x".parse::<Selector>().is_err());
        assert!(Selector::default().matches(None));
        assert_eq!(object.to_string(), "env=prod,tier=web");
    }

    #[test]
    fn labels_are_bounded() {
        assert!(labels(&format!(r#"{{"a": "{}"}}"#, "x".repeat(64))).is_err());
        assert!(labels(r#"{"a": "x y"}"#).is_err());
        let many: BTreeMap<String, &str> = (0..65).map(|n| (format!("k{n}"), "")).collect();
        assert!(labels(&serde_json::to_string(&many).unwrap()).is_err());
    }

    #[test]
    fn an_owned_key_reads_back() {
        let key: Owned<crate::SecurityGroupId> = "acme/web".parse().unwrap();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("acme".parse::<Owned<crate::SecurityGroupId>>().is_err());
    }
}
