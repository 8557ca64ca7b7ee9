//! Lists of objects: filtered, in pages. What an index answers is not searched for.

use super::Resource;
use crate::Control;
use crate::access;
use crate::interface::{Actor, Refusal};
use crate::tables::{Row, Table};
use drover_model::intent::{Host, Tenant};
use drover_model::kind::{Audience, ObjectKey, Selector};
use drover_model::v1::{List, ListQuery};
use drover_model::{BadName, HostId, TenantName};

/// A query that makes sense.
struct Filter {
    /// `None`: of everybody, as far as the caller may see.
    tenant: Option<TenantName>,
    host: Option<HostId>,
    name: Option<String>,
    state: Option<String>,
    selector: Selector,
    limit: usize,
}

impl Filter {
    fn read<K: Resource>(query: &ListQuery, actor: &Actor) -> Result<Self, Refusal> {
        let named = |field: &'static str| move |error: BadName| Refusal::invalid(field, error.to_string());
        let limit = query.limit.unwrap_or(ListQuery::LIMIT_DEFAULT);
        if !(1..=ListQuery::LIMIT_MAX).contains(&limit) {
            return Err(Refusal::invalid("limit", format!("must lie between 1 and {}", ListQuery::LIMIT_MAX)));
        }
        if let Some(state) = query.state.as_deref().filter(|state| !K::STATES.contains(state)) {
            let detail = match K::STATES {
                [] => format!("a {} has no states: leave it out", K::TITLE),
                known => format!("{:?} is none of {}", short(state), known.join(", ")),
            };
            return Err(Refusal::invalid("state", detail));
        }
        let asked = query.tenant.as_deref().map(str::parse::<TenantName>).transpose().map_err(named("tenant"))?;
        Ok(Self {
            tenant: match (actor.role.tenant(), K::ACCESS.read) {
                (Some(own), Audience::Owner) if asked.is_none() => Some(own.clone()),
                _ => asked,
            },
            host: query.host.as_deref().map(str::parse).transpose().map_err(named("host"))?,
            name: query.name.clone(),
            state: query.state.clone(),
            selector: query.selector.as_deref().unwrap_or("").parse().map_err(named("selector"))?,
            limit,
        })
    }

    fn takes<K: Resource>(&self, control: &Control, actor: &Actor, object: &K) -> bool {
        let owner = object.owner_in(control);
        access::sees::<K>(actor, owner)
            && self.tenant.as_ref().is_none_or(|tenant| owner.tenant() == Some(tenant))
            && self.host.as_ref().is_none_or(|host| object.host() == Some(host))
            && self.name.as_ref().is_none_or(|name| object.name() == *name)
            && self.selector.matches(object.labels())
            && self.state.as_deref().is_none_or(|state| object.state(control) == Some(state))
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// All that an index can leave, in the order of the list, after the cursor.
fn candidates<'a, K: Resource>(
    table: &'a Table<K>,
    filter: &'a Filter,
    after: Option<K::Key>,
) -> Box<dyn Iterator<Item = &'a Row<K>> + 'a> {
    let rows = |objects: Vec<&'a K>| objects.into_iter().filter_map(|object| table.row(&object.key()));
    let later = move |row: &&Row<K>| match &after {
        None => true,
        Some(after) if K::NEWEST_FIRST => row.value.key() < *after,
        Some(after) => row.value.key() > *after,
    };
    let refers = |key: &ObjectKey| table.count_referring_to(key) > 0;
    let host = filter.host.as_ref().map(ObjectKey::of::<Host>).filter(refers);
    let tenant = filter.tenant.as_ref().map(ObjectKey::of::<Tenant>).filter(refers);
    if let Some(name) = &filter.name {
        return Box::new(rows(table.named(name).collect()).filter(later));
    }
    if let Some(key) = host.or(tenant) {
        return Box::new(rows(table.referring_to(&key).collect()).filter(later));
    }
    match K::NEWEST_FIRST {
        true => Box::new(table.rows().rev().filter(later)),
        false => Box::new(table.rows().filter(later)),
    }
}

impl Control {
    /// A page of the objects of a kind that the caller may see.
    pub fn list<K: Resource>(&self, actor: &Actor, query: &ListQuery) -> Result<List<K::View>, Refusal> {
        access::may_read::<K>(actor)?;
        let filter = Filter::read::<K>(query, actor)?;
        let bad = || Refusal::invalid("cursor", "must be `next` of the page before, as it was given".to_owned());
        let after = query.cursor.as_deref().map(|text| text.parse::<K::Key>().map_err(|_| bad())).transpose()?;
        let table = K::table(&self.tables);
        let mut rows = match &after {
            // Nothing before the cursor is looked at.
            Some(after) if filter.host.is_none() && filter.tenant.is_none() && filter.name.is_none() => {
                match K::NEWEST_FIRST {
                    true => Box::new(table.rows_before(after).rev()) as Box<dyn Iterator<Item = &Row<K>>>,
                    false => Box::new(table.rows_after(after)),
                }
            }
            _ => candidates(table, &filter, after),
        }
        .filter(|row| filter.takes(self, actor, &row.value));
        let page: Vec<&Row<K>> = rows.by_ref().take(filter.limit).collect();
        let more = rows.next().is_some();
        let next = page.last().filter(|_| more).map(|row| row.value.key().to_string());
        Ok(List { items: page.into_iter().map(|row| self.view(row, actor, false)).collect(), next })
    }
}
