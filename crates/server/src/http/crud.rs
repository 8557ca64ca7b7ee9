//! The routes that every kind of object has: list, get, create, patch, remove; their description with them.
//!
//! A kind's own verbs stand in a file of its own. What is asked for is decided in `control::kinds`.

use super::Api;
use super::condition::{Conditions, object};
use super::problem::Failure;
use super::read::{At, Body, Caller, MergePatch, Params, optional_name};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, patch, post};
use drover_api::v1::{List, ListQuery, MERGE_PATCH, TenantQuery};
use drover_control::interface::{Action, Actor, Reply};
use drover_control::kinds::{Drafted, Resource};
use drover_model::TenantName;
use drover_model::kind::ObjectKey;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Content, ContentBuilder, Ref, Required, ResponseBuilder};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

/// The routes of a kind that can be made by its draft alone.
pub(super) fn all_routes<K: Drafted>() -> OpenApiRouter<Api> {
    let described = Described::of::<K>();
    let create = described.operation("create", &format!("A new {}", K::TITLE));
    let create = create.request_body(Some(body::<K::Create>("application/json")));
    routes::<K>().routes(described.route::<K::Create>(
        "",
        HttpMethod::Post,
        answers(create, &K::View::name(), "201", "It was made"),
        post(create_one::<K>),
    ))
}

/// The routes of any kind, but for what it does not have.
pub(super) fn routes<K: Resource>() -> OpenApiRouter<Api> {
    let described = Described::of::<K>();
    let list = described
        .operation("list", &format!("The {}s that the caller may see and that match the query, in pages", K::TITLE))
        .parameters(Some(ListQuery::into_params(|| Some(ParameterIn::Query))));
    // One description for each kind of list: a generic type's own name is the same for all of them.
    let list_name = format!("{}_{}", List::<K::View>::name(), K::View::name());
    let (mut schemas, paths, handler) = described.route::<List<K::View>>(
        "",
        HttpMethod::Get,
        answers(list, &list_name, "200", "Those that match"),
        get(list_all::<K>),
    );
    schemas[0].0 = list_name;
    let mut router = OpenApiRouter::new().routes((schemas, paths, handler)).routes(described.route::<K::View>(
        "/{ref}",
        HttpMethod::Get,
        answers(described.one("get", &format!("One {}", K::TITLE)), &K::View::name(), "200", "As it is now"),
        get(get_one::<K>),
    ));
    if K::PATCHABLE {
        let summary = format!("Change the settings of one {} by a JSON merge patch (RFC 7396)", K::TITLE);
        let patched = described.one("patch", &summary);
        let patched = patched.request_body(Some(body::<K::Settings>(MERGE_PATCH)));
        router = router.routes(described.route::<K::Settings>(
            "/{ref}",
            HttpMethod::Patch,
            answers(patched, &K::View::name(), "200", "As it is now"),
            patch(patch_one::<K>),
        ));
    }
    if K::REMOVABLE {
        let gone = ResponseBuilder::new().description("It is gone").build();
        router = router.routes(described.route::<K::View>(
            "/{ref}",
            HttpMethod::Delete,
            described.one("remove", &format!("Remove one {}", K::TITLE)).response("204", gone),
            delete(remove_one::<K>),
        ));
    }
    router
}

/// What the description of a kind's routes has in common.
struct Described {
    title: &'static str,
    plural: &'static str,
    tag: &'static str,
}

impl Described {
    fn of<K: Resource>() -> Self {
        Self { title: K::TITLE, plural: K::PLURAL, tag: K::TAG }
    }

    /// `list_security_groups`, `get_security_group`: the plural where the answer is a list.
    fn operation(&self, verb: &str, summary: &str) -> OperationBuilder {
        let of = if verb == "list" { self.plural.replace('-', "_") } else { self.title.replace(' ', "_") };
        OperationBuilder::new().tag(self.tag).operation_id(Some(format!("{verb}_{of}"))).summary(Some(summary))
    }

    fn one(&self, verb: &str, summary: &str) -> OperationBuilder {
        let reference = ParameterBuilder::new()
            .name("ref")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("Its id or name"))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        let operation = self.operation(verb, summary).parameter(reference);
        operation.parameters(Some(TenantQuery::into_params(|| Some(ParameterIn::Query))))
    }

    fn route<T: ToSchema>(
        &self,
        below: &str,
        method: HttpMethod,
        operation: OperationBuilder,
        router: MethodRouter<Api>,
    ) -> UtoipaMethodRouter<Api> {
        let operation: Operation = operation.build();
        let mut paths = Paths::new();
        paths.paths.insert(format!("/v1/{}{below}", self.plural), PathItem::new(method, operation));
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        (schemas, paths, router)
    }
}

fn content(schema: &str) -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build()
}

fn body<T: ToSchema>(media_type: &str) -> utoipa::openapi::request_body::RequestBody {
    RequestBodyBuilder::new().content(media_type, content(&T::name())).required(Some(Required::True)).build()
}

/// With an object of the named schema.
fn answers(operation: OperationBuilder, schema: &str, status: &str, description: &str) -> OperationBuilder {
    let response = ResponseBuilder::new().description(description).content("application/json", content(schema));
    operation.response(status, response.build())
}

async fn list_all<K: Resource>(
    State(api): State<Api>,
    Caller(actor): Caller,
    Params(query): Params<ListQuery>,
) -> Result<Json<List<K::View>>, Failure> {
    Ok(Json(api.shell.query(move |control| control.list::<K>(&actor, &query)).await??))
}

async fn get_one<K: Resource>(
    State(api): State<Api>,
    Caller(actor): Caller,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<Response, Failure> {
    let key = find::<K>(&api, &actor, reference, query).await?;
    show::<K>(&api, actor, key, StatusCode::OK).await
}

async fn create_one<K: Drafted>(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    Body(create): Body<K::Create>,
) -> Result<Response, Failure> {
    let action = Action::Create(K::draft(create));
    let reply = api.shell.submit(conditions.change(actor.clone(), action)).await?;
    answer::<K>(&api, actor, reply, StatusCode::CREATED).await
}

async fn patch_one<K: Resource>(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
    MergePatch(patch): MergePatch,
) -> Result<Response, Failure> {
    let key = ObjectKey::of::<K>(&find::<K>(&api, &actor, reference, query).await?);
    let reply = api.shell.submit(conditions.change(actor.clone(), Action::Patch { key, patch })).await?;
    answer::<K>(&api, actor, reply, StatusCode::OK).await
}

async fn remove_one<K: Resource>(
    State(api): State<Api>,
    Caller(actor): Caller,
    conditions: Conditions,
    At(reference): At<String>,
    Params(query): Params<TenantQuery>,
) -> Result<StatusCode, Failure> {
    let key = ObjectKey::of::<K>(&find::<K>(&api, &actor, reference, query).await?);
    api.shell.submit(conditions.change(actor, Action::Remove { key })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The object that a request speaks of, if the caller may know of it.
pub(super) async fn find<K: Resource>(
    api: &Api,
    actor: &Actor,
    reference: String,
    query: TenantQuery,
) -> Result<K::Key, Failure> {
    let tenant: Option<TenantName> = optional_name("tenant", query.tenant.as_deref())?;
    let actor = actor.clone();
    let found = api.shell.query(move |control| {
        control.may_read::<K>(&actor)?;
        control.find::<K>(&reference, &actor, tenant.as_ref()).map(|row| row.value.key())
    });
    Ok(found.await??)
}

/// One object, with its revision as entity tag.
pub(super) async fn show<K: Resource>(
    api: &Api,
    actor: Actor,
    key: K::Key,
    status: StatusCode,
) -> Result<Response, Failure> {
    let found = api.shell.query(move |control| {
        let row = K::table(control.rows()).row(&key)?;
        Some((row.revision, control.view(row, &actor, true)))
    });
    let (revision, view) = found.await?.ok_or_else(|| gone(K::TITLE))?;
    Ok(object(status, revision, view))
}

/// The object that a change was about.
pub(super) async fn answer<K: Resource>(
    api: &Api,
    actor: Actor,
    reply: Reply,
    status: StatusCode,
) -> Result<Response, Failure> {
    let Reply::Object(key) = reply else { return Err(gone(K::TITLE)) };
    show::<K>(api, actor, key.id.parse().map_err(|_| gone(K::TITLE))?, status).await
}

/// It was made or changed, and removed by somebody else before it could be shown.
pub(super) fn gone(what: &str) -> Failure {
    Failure::not_found(format!("the {what} was removed meanwhile"))
}
