//! Objects of any kind: list, get, create, patch, remove.

use super::{ApiError, Client};
use crate::v1::{List, ListQuery, MERGE_PATCH};
use drover_model::kind::Exposed;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use std::marker::PhantomData;

/// The objects of one kind. `reference` is an id, or a name within the tenant of the token or of [`Objects::within`].
#[derive(Debug)]
pub struct Objects<'a, K> {
    client: &'a Client,
    tenant: Option<&'a str>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Objects<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Objects<'_, K> {}

impl Client {
    pub fn of<K: Exposed>(&self) -> Objects<'_, K> {
        Objects { client: self, tenant: None, kind: PhantomData }
    }
}

impl<'a, K: Exposed> Objects<'a, K> {
    /// Whose objects, where several tenants use a name.
    #[must_use]
    pub fn within(self, tenant: Option<&'a str>) -> Self {
        Self { tenant, ..self }
    }

    /// All that the caller may see, page by page.
    pub async fn all(self) -> Result<List<K::View>, ApiError> {
        self.list(&ListQuery::default()).await
    }

    /// All that match, page by page from the query's cursor on.
    pub async fn list(self, query: &ListQuery) -> Result<List<K::View>, ApiError> {
        let mut query = query.clone();
        let mut items = Vec::new();
        loop {
            let page = self.page(&query).await?;
            items.extend(page.items);
            match page.next {
                // A server that gives the same cursor again would keep us here for ever.
                Some(next) if Some(&next) != query.cursor.as_ref() => query.cursor = Some(next),
                _ => return Ok(List { items, next: None }),
            }
        }
    }

    /// One page.
    pub async fn page(self, query: &ListQuery) -> Result<List<K::View>, ApiError> {
        let limit = query.limit.map(|limit| limit.to_string());
        let pairs = [
            ("limit", limit.as_deref()),
            ("cursor", query.cursor.as_deref()),
            ("tenant", query.tenant.as_deref().or(self.tenant)),
            ("name", query.name.as_deref()),
            ("state", query.state.as_deref()),
            ("selector", query.selector.as_deref()),
            ("host", query.host.as_deref()),
        ];
        self.client.get(&["v1", K::PLURAL], &pairs).await
    }

    pub async fn get(self, reference: &str) -> Result<K::View, ApiError> {
        self.client.get(&["v1", K::PLURAL, reference], &[("tenant", self.tenant)]).await
    }

    pub async fn create(self, create: &K::Create) -> Result<K::View, ApiError> {
        self.client.change(Method::POST, &["v1", K::PLURAL], &[], create).await
    }

    /// Changes settings by a JSON merge patch (RFC 7396).
    pub async fn patch(self, reference: &str, patch: &Value) -> Result<K::View, ApiError> {
        let request = self.client.request(Method::PATCH, &["v1", K::PLURAL, reference], &[("tenant", self.tenant)]);
        let answer = self.client.send(request.json(patch).header(CONTENT_TYPE, MERGE_PATCH)).await?;
        self.client.decode(&answer)
    }

    /// `None`: it is gone. A vm is shown until its host has let go of it.
    pub async fn remove(self, reference: &str) -> Result<Option<K::View>, ApiError> {
        let request = self.client.request(Method::DELETE, &["v1", K::PLURAL, reference], &[("tenant", self.tenant)]);
        let answer = self.client.send(request).await?;
        match answer.body.is_empty() {
            true => Ok(None),
            false => self.client.decode(&answer).map(Some),
        }
    }
}
