//! The API's description (OpenAPI 3.1), made from the handlers themselves.

use super::{Api, long_routes, quick_routes};
use axum::http::header;
use axum::response::IntoResponse;
use drover_api::problem::{MEDIA_TYPE, Problem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi, ToSchema as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(
    info(title = "drover", description = "A self-driving virtual infrastructure manager."),
    components(schemas(Problem)),
    security(("token" = [])),
)]
struct Description;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get_openapi))
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "cluster", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
async fn get_openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json())
}

/// The description as JSON, as `drover openapi` prints it.
pub fn openapi_json() -> String {
    let mut openapi =
        OpenApiRouter::with_openapi(Description::openapi()).merge(quick_routes()).merge(long_routes()).into_openapi();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    openapi.components.get_or_insert_with(Components::new).security_schemes.insert("token".to_owned(), RefOr::T(token));
    // Every operation can fail, and always in this form.
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let failure = ResponseBuilder::new().description("Why nothing was changed").content(MEDIA_TYPE, content).build();
    for item in openapi.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(failure.clone()));
        }
    }
    openapi.to_pretty_json().expect("a description is made of strings, numbers and maps with string keys")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The table of routes in the documentation of `drover_api::v1`.
    fn documented() -> BTreeSet<String> {
        let source = include_str!("../../../model/src/v1/mod.rs");
        let rows = source.lines().filter_map(|line| line.strip_prefix("//! | `"));
        let cells = rows.filter_map(|row| row.split(" | ").next());
        let routes = cells.flat_map(|cell| cell.split(", `").map(|route| route.trim_end_matches('`').to_owned()));
        routes.filter(|route| route.contains(" /")).map(|route| route.replace("`", "")).collect()
    }

    fn described() -> BTreeSet<String> {
        let openapi: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let paths = openapi["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        operations.collect()
    }

    #[test]
    fn exactly_the_documented_routes_are_described() {
        assert_eq!(described(), documented());
    }

    #[test]
    fn the_description_is_version_3_1_and_complete() {
        let openapi: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        assert_eq!(openapi["openapi"], "3.1.0");
        let text = openapi.to_string();
        let schemas = openapi["components"]["schemas"].as_object().unwrap();
        let prefix = "#/components/schemas/";
        for reference in text.split(prefix).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(schemas.contains_key(reference), "{reference} is referred to and not described");
        }
        for (path, item) in openapi["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["responses"].get("default").is_some(), "{method} {path}");
                assert!(operation.get("summary").is_some(), "{method} {path}");
            }
        }
        let open = &openapi["paths"]["/v1/ca"]["get"]["security"];
        assert_eq!(*open, serde_json::json!([{}]));
    }

    /// Each with a schema of its own, and no field but those described: what a server refuses, the description does, too.
    #[test]
    fn requests_are_described_as_strictly_as_they_are_read() {
        let openapi: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let schema = |content: &serde_json::Value| {
            let reference = content["schema"]["$ref"].as_str()?.strip_prefix("#/components/schemas/")?;
            Some((reference.to_owned(), openapi["components"]["schemas"][reference].clone()))
        };
        let operations = openapi["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap());
        let (mut bodies, mut ids) = (0, BTreeSet::new());
        for (method, operation) in operations {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "two operations are called {id}");
            let contents = operation["requestBody"]["content"].as_object().into_iter().flatten();
            for (name, body) in contents.filter_map(|(_, content)| schema(content)) {
                bodies += 1;
                assert_eq!(body["additionalProperties"], false, "{id}: {name}");
                let required = body["required"].as_array().map_or(0, Vec::len);
                assert!(method != "patch" || required == 0, "{id}: a patch names what it changes only: {name}");
            }
            if let Some((name, list)) = schema(&operation["responses"]["200"]["content"]["application/json"])
                && id.starts_with("list_")
            {
                let items = list["properties"]["items"]["items"]["$ref"].as_str().unwrap_or("EventView");
                let of = items.rsplit('/').next().unwrap();
                assert_eq!(name, format!("List_{of}"), "{id}");
            }
        }
        assert!(bodies >= 20, "{bodies}");
    }

    /// `UPDATE=1 cargo test -p drover-server` writes the file anew.
    #[test]
    fn the_description_changes_only_on_purpose() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let now = format!("{}\n", openapi_json());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == now, "the API's description has changed: look, then run the tests with UPDATE=1");
    }
}
