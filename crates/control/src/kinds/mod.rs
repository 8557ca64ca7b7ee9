//! Every kind of object: what the store holds of it, and what may be done with it.
//!
//! ```text
//!   Action::Create(Draft) ─▶ authorize ─▶ K::create ─▶ put ─▶ event
//!   Action::Patch         ─▶ authorize ─▶ merge (RFC 7396) ─▶ K::patch ─▶ put ─▶ event
//!   Action::Remove        ─▶ authorize ─▶ nobody refers to it ─▶ K::may_remove ─▶ remove ─▶ K::removed ─▶ event
//! ```
//!
//! A kind is registered once, in the list below; `docs/adding-a-kind.md` shows how.

mod host;
mod image;
mod list;
mod migration;
mod network;
mod placement_rule;
mod plan;
mod port;
mod security_group;
mod tenant;
mod token;
mod vm;

pub(crate) use image::create as create_image;
pub(crate) use tenant::Wanted;
pub(crate) use token::create as create_token;

use crate::Control;
use crate::access;
use crate::interface::{Actor, Idempotency, Refusal, Reply};
use crate::tables::{Row, Table};
use drover_model::event::Severity;
use drover_model::intent::{ApiToken, Host, Image, JoinToken, Tenant, Vm};
use drover_model::kind::{Exposed, Kind, ObjectKey, Owner};
use drover_model::migration::MigrationRecord;
use drover_model::network::{Network, Port, SecurityGroup};
use drover_model::placement::PlacementRule;
use drover_model::plan::PlanRecord;
use drover_model::policy::Policy;
use drover_model::{Revision, TenantName, TimeMs};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A kind with a table in the store.
pub trait Entity: Kind {
    fn table(rows: &Rows) -> &Table<Self>;
    fn table_mut(rows: &mut Rows) -> &mut Table<Self>;
    fn wrap(self) -> Object;
    fn unwrap(object: &Object) -> Option<&Self>;
}

macro_rules! kinds {
    ($($table:ident: $variant:ident($type:ty),)+) => {
        /// An object of the store, whatever its kind.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
        pub enum Object {
            $($variant($type)),+
        }

        impl Object {
            pub const KINDS: &[&'static str] = &[$(<$type as Kind>::NAME),+];

            pub fn key(&self) -> ObjectKey {
                match self {
                    $(Self::$variant(value) => value.object_key()),+
                }
            }

            pub fn owner(&self) -> Owner<'_> {
                match self {
                    $(Self::$variant(value) => value.owner()),+
                }
            }
        }

        /// A table for each kind.
        #[derive(Debug, Clone, Default)]
        pub struct Rows {
            $(pub $table: Table<$type>),+
        }

        impl Rows {
            pub(crate) fn insert(&mut self, revision: Revision, object: Object) {
                match object {
                    $(Object::$variant(value) => self.$table.load(Row { revision, value })),+
                }
            }

            /// Of each kind: its name, and how many of its objects refer to this one.
            fn users(&self, key: &ObjectKey) -> Vec<(&'static str, usize)> {
                vec![$((<$type as Kind>::NAME, self.$table.count_referring_to(key))),+]
            }

            pub fn revision_of(&self, key: &ObjectKey) -> Option<Revision> {
                $(if key.kind == <$type as Kind>::NAME {
                    return self.$table.row(&key.id.parse().ok()?).map(|row| row.revision);
                })+
                None
            }
        }

        $(impl Entity for $type {
            fn table(rows: &Rows) -> &Table<Self> {
                &rows.$table
            }
            fn table_mut(rows: &mut Rows) -> &mut Table<Self> {
                &mut rows.$table
            }
            fn wrap(self) -> Object {
                Object::$variant(self)
            }
            fn unwrap(object: &Object) -> Option<&Self> {
                match object {
                    Object::$variant(value) => Some(value),
                    // All others: this arm stands in a macro that does not know their names.
                    _ => None,
                }
            }
        })+
    };
}

kinds! {
    tenants: Tenant(Tenant),
    api_tokens: ApiToken(ApiToken),
    join_tokens: JoinToken(JoinToken),
    hosts: Host(Host),
    images: Image(Image),
    vms: Vm(Vm),
    migrations: Migration(MigrationRecord),
    plans: Plan(PlanRecord),
    policy: Policy(Policy),
    idempotency: Idempotency(Idempotency),
    networks: Network(Network),
    security_groups: SecurityGroup(SecurityGroup),
    ports: Port(Port),
    rules: PlacementRule(PlacementRule),
}

impl Object {
    /// Whose it is, and who may see its changes besides operators; a tenant sees its own. `None`: the cluster's.
    pub fn tenant(&self) -> Option<&TenantName> {
        match Tenant::unwrap(self) {
            Some(tenant) => Some(&tenant.name),
            None => self.owner().tenant(),
        }
    }
}

/// What a request works with.
pub struct Context<'a> {
    pub control: &'a mut Control,
    /// By the cluster clock.
    pub now: TimeMs,
    pub actor: &'a Actor,
    /// 12 random lower-case letters, for an id.
    pub fresh: &'a str,
}

impl Context<'_> {
    /// Now, as people read it.
    pub fn wall(&self) -> TimeMs {
        self.control.to_wall(self.now)
    }
}

/// What a view is made of.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub control: &'a Control,
    pub actor: &'a Actor,
    pub revision: Revision,
    /// One object alone, for which more is worth looking up than for each of a list.
    pub alone: bool,
}

/// How objects of a kind come, change, go and look.
pub trait Resource: Exposed + Entity {
    /// The object as it will be stored. Only for kinds that are [`Exposed::CREATABLE`].
    fn create(_context: &mut Context, _create: Self::Create) -> Result<Self, Refusal> {
        Err(Refusal::invalid("kind", format!("a {} is not made this way", Self::TITLE)))
    }

    /// What `PATCH` changes, as it is now. `None`: nothing.
    fn settings(&self) -> Option<Self::Settings> {
        None
    }

    /// The object with other settings. Only for kinds that are [`Exposed::PATCHABLE`].
    fn patch(&self, _context: &mut Context, _settings: Self::Settings) -> Result<Self, Refusal> {
        Err(Refusal::conflict(format!("a {} does not change", Self::TITLE)))
    }

    /// Kinds whose objects may refer to one that is removed: they go with it, or [`Resource::may_remove`] looks at them.
    const MAY_REFER: &'static [&'static str] = &[];

    /// Asked once nothing refers to the object but what [`Resource::MAY_REFER`] names.
    fn may_remove(&self, _context: &Context) -> Result<(), Refusal> {
        Ok(())
    }

    /// What else goes or changes with it.
    fn removed(&self, _context: &mut Context) {}

    /// Whose it is, where that is written elsewhere.
    fn owner_in<'a>(&'a self, _control: &'a Control) -> Owner<'a> {
        self.owner()
    }

    /// One of [`Exposed::STATES`].
    fn state(&self, _control: &Control) -> Option<&'static str> {
        None
    }

    /// The host that it is on, for lists of what is on a host.
    fn host(&self) -> Option<&drover_model::HostId> {
        None
    }

    fn view(&self, reading: Reading) -> Self::View;
}

/// What `POST` asks for, of the kinds that can be made by it alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum Draft {
    Tenant(<Tenant as Exposed>::Create),
    Network(<Network as Exposed>::Create),
    SecurityGroup(<SecurityGroup as Exposed>::Create),
    Port(<Port as Exposed>::Create),
    PlacementRule(<PlacementRule as Exposed>::Create),
}

/// A kind whose drafts are a case of [`Draft`].
pub trait Drafted: Resource {
    fn draft(create: Self::Create) -> Draft;
}

macro_rules! drafted {
    ($($type:ident),+) => {
        $(impl Drafted for $type {
            fn draft(create: Self::Create) -> Draft {
                Draft::$type(create)
            }
        })+

        pub(crate) fn create(context: &mut Context, draft: Draft) -> Result<Reply, Refusal> {
            match draft {
                $(Draft::$type(draft) => create_one::<$type>(context, draft)),+
            }
        }
    };
}

drafted!(Tenant, Network, SecurityGroup, Port, PlacementRule);

fn create_one<K: Resource>(context: &mut Context, create: K::Create) -> Result<Reply, Refusal> {
    access::may_write::<K>(context.actor)?;
    let object = K::create(context, create)?;
    access::may_change::<K>(context.actor, object.owner())?;
    let key = object.key();
    let taken = K::table(&context.control.tables).contains_key(&key)
        || K::table(&context.control.tables).of_owner(object.owner(), &object.name()).is_some();
    if taken {
        return Err(name_taken::<K>(&object.name()));
    }
    happened(context, &object, "created", "created");
    let key = ObjectKey::of::<K>(&key);
    context.control.tables.put(object);
    Ok(Reply::Object(key))
}

fn name_taken<K: Exposed>(name: &str) -> Refusal {
    Refusal::conflict(format!("there is a {} {name} already: choose another name", K::TITLE)).at("name")
}

macro_rules! by_name {
    ($($type:ident),+) => {
        /// Changes an object by a JSON merge patch (RFC 7396) of its settings.
        pub(crate) fn patch(context: &mut Context, key: &ObjectKey, patch: &Value) -> Result<Reply, Refusal> {
            $(if key.kind == <$type as Kind>::NAME {
                return patch_one::<$type>(context, &key.id, patch);
            })+
            Err(unknown_kind(key))
        }

        pub(crate) fn remove(context: &mut Context, key: &ObjectKey) -> Result<Reply, Refusal> {
            $(if key.kind == <$type as Kind>::NAME {
                return remove_one::<$type>(context, &key.id);
            })+
            Err(unknown_kind(key))
        }
    };
}

by_name!(Tenant, ApiToken, Host, Image, Network, SecurityGroup, Port, PlacementRule);

fn unknown_kind(key: &ObjectKey) -> Refusal {
    Refusal::invalid("kind", format!("{key} can't be changed this way"))
}

fn patch_one<K: Resource>(context: &mut Context, id: &str, patch: &Value) -> Result<Reply, Refusal> {
    let before = own::<K>(context, id)?;
    let settings = before.settings().ok_or_else(|| Refusal::conflict(format!("a {} does not change", K::TITLE)))?;
    let changed = merged(&settings, patch)?;
    let after = before.patch(context, changed)?;
    let key = before.object_key();
    if after != before {
        happened(context, &after, "changed", "changed");
        context.control.tables.put(after);
    }
    Ok(Reply::Object(key))
}

/// The settings after a merge patch. A key that they do not have is refused by name.
fn merged<S: Serialize + serde::de::DeserializeOwned>(settings: &S, patch: &Value) -> Result<S, Refusal> {
    let example = "a merge patch is a JSON object, e.g. {\"labels\": {\"env\": \"prod\"}}";
    let Value::Object(changes) = patch else { return Err(Refusal::invalid("body", example.to_owned())) };
    let unreadable = |error: serde_json::Error| Refusal::invalid("body", format!("the patch does not fit: {error}"));
    let mut whole = serde_json::to_value(settings).map_err(unreadable)?;
    let known: Vec<&String> = whole.as_object().into_iter().flat_map(|whole| whole.keys()).collect();
    if let Some(unknown) = changes.keys().find(|key| !known.contains(key)) {
        let known = known.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let shown: String = unknown.chars().take(80).collect();
        return Err(Refusal::invalid(shown.clone(), format!("unknown field `{shown}`: a patch changes {known}")));
    }
    json_patch::merge(&mut whole, patch);
    // Each key alone tells which one does not fit.
    serde_json::from_value(whole).map_err(|error| match changes.keys().next() {
        Some(only) if changes.len() == 1 => Refusal::invalid(only.clone(), error.to_string()),
        _ => unreadable(error),
    })
}

fn remove_one<K: Resource>(context: &mut Context, id: &str) -> Result<Reply, Refusal> {
    let object = own::<K>(context, id)?;
    let key = object.object_key();
    let users = context.control.users_of(&key, K::MAY_REFER);
    if !users.is_empty() {
        let detail = format!("{} {} is in use by {users}: remove them first", K::TITLE, object.name());
        return Err(Refusal::conflict(detail));
    }
    object.may_remove(context)?;
    context.control.tables.remove::<K>(&object.key());
    object.removed(context);
    happened(context, &object, "removed", "removed");
    Ok(Reply::Done)
}

/// The object, if the caller may change it.
fn own<K: Resource>(context: &Context, id: &str) -> Result<K, Refusal> {
    access::may_write::<K>(context.actor)?;
    let control = &*context.control;
    let object = id.parse().ok().and_then(|key| control.tables.get::<K>(&key));
    let object = object.filter(|object| access::sees::<K>(context.actor, object.owner_in(control)));
    let object = object.ok_or_else(|| not_found::<K>(id))?;
    access::may_change::<K>(context.actor, object.owner_in(control))?;
    Ok(object.clone())
}

pub(crate) fn not_found<K: Exposed>(reference: &str) -> Refusal {
    Refusal::not_found(format!("there is no {} {reference:?}", K::TITLE))
}

/// Tells that an object was made, changed or removed, and by whom.
fn happened<K: Resource>(context: &mut Context, object: &K, kind: &str, verb: &str) {
    let (name, title) = (object.name(), K::TITLE);
    let tenant = object.owner_in(context.control).tenant().cloned();
    let text = format!("{} {verb} {title} {name}", context.actor.name);
    let (key, kind) = (object.object_key().to_string(), format!("{}-{kind}", K::NAME));
    context.control.tables.event(context.now, Severity::Info, key, tenant.as_ref(), &kind, text);
}

impl Control {
    /// What refers to an object, in words; empty: nothing.
    fn users_of(&self, key: &ObjectKey, may_refer: &[&str]) -> String {
        let used = self.tables.users(key).into_iter().filter(|(kind, count)| *count > 0 && !may_refer.contains(kind));
        let words = used
            .map(|(kind, count)| format!("{count} {}{}", kind.replace('-', " "), if count == 1 { "" } else { "s" }));
        words.collect::<Vec<_>>().join(" and ")
    }

    /// An object by its key, by its name, or by `TENANT/NAME`: among those that the caller may see, of one tenant if one is
    /// named. An exact key comes before a name.
    pub fn find<K: Resource>(
        &self,
        reference: &str,
        actor: &Actor,
        tenant: Option<&TenantName>,
    ) -> Result<&Row<K>, Refusal> {
        let table = K::table(&self.tables);
        let (tenant, name) = match reference.split_once('/') {
            Some((owner, name)) if tenant.is_none() => {
                (Some(owner.parse::<TenantName>().map_err(|_| not_found::<K>(reference))?), name)
            }
            _ => (tenant.cloned(), reference),
        };
        // A tenant that names another finds nothing, not its own object of that name.
        let visible = |object: &&K| {
            let owner = object.owner_in(self);
            let named = |tenant: &TenantName| owner.tenant().is_none_or(|owner| owner == tenant);
            access::sees::<K>(actor, owner) && tenant.as_ref().is_none_or(named)
        };
        let by_key = name.parse().ok().and_then(|key| table.get(&key)).filter(visible);
        let mut named = table.named(name).filter(visible);
        let found = match (by_key, named.next(), named.next()) {
            (Some(object), ..) | (None, Some(object), None) => object,
            (None, None, _) => return Err(not_found::<K>(reference)),
            (None, Some(_), Some(_)) => {
                let detail =
                    format!("several tenants have a {} {reference:?}: name the tenant too, or use its id", K::TITLE);
                return Err(Refusal::conflict(detail));
            }
        };
        table.row(&found.key()).ok_or_else(|| not_found::<K>(reference))
    }

    /// Whether the caller may read objects of this kind at all.
    pub fn may_read<K: Resource>(&self, actor: &Actor) -> Result<(), Refusal> {
        access::may_read::<K>(actor)
    }

    /// As the caller sees it.
    pub fn view<K: Resource>(&self, row: &Row<K>, actor: &Actor, alone: bool) -> K::View {
        row.value.view(Reading { control: self, actor, revision: row.revision, alone })
    }

    pub fn rows(&self) -> &Rows {
        &self.tables
    }
}

#[cfg(test)]
mod tests;
