//! Images: their files are uploaded one by one, then registered together.

use super::condition::Conditions;
use super::problem::Failure;
use super::read::{At, Body, Operator, name};
use super::{Api, crud, permit};
use crate::shell::now;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use drover_api::problem::ProblemType;
use drover_api::v1::{CreateImage, ImagePart, ImageView, StagedFile};
use drover_control::interface::Action;
use drover_model::intent::{Image, ImageFile};
use drover_model::kind::ObjectKey;
use drover_model::{Bytes, ImageId};
use std::collections::BTreeSet;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Api> {
    crud::routes::<Image>().routes(routes!(create_image)).routes(routes!(remove_image))
}

pub(super) fn upload_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(upload))
}

/// Upload one file of an image that is to be
#[utoipa::path(put, path = "/v1/images/{image}/files/{part}", tag = "images",
    params(("image" = String, Path, description = "The name the image will have"),
           ("part" = ImagePart, Path, description = "Which file")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The file's bytes"),
    responses((status = 200, description = "It waits to be registered", body = StagedFile)))]
async fn upload(
    State(api): State<Api>,
    _operator: Operator,
    Path((image, part)): Path<(String, String)>,
    request: Request,
) -> Result<Json<StagedFile>, Failure> {
    let image: ImageId = name("image", &image)?;
    let part: ImagePart =
        part.parse().map_err(|error: drover_api::v1::BadImagePart| Failure::not_found(error.to_string()))?;
    refuse_existing(&api, &image).await?;
    let _permit = permit(&api.0.uploads, "uploads")?;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let staged = api.staging().take(&image, part, length, request.into_body().into_data_stream()).await?;
    Ok(Json(staged))
}

async fn existing(api: &Api, id: &ImageId) -> Result<Option<Image>, Failure> {
    let id = id.clone();
    Ok(api.shell.query(move |control| control.image(&id).cloned()).await?)
}

async fn refuse_existing(api: &Api, id: &ImageId) -> Result<(), Failure> {
    match existing(api, id).await? {
        None => Ok(()),
        Some(_) => {
            let detail = format!("there is an image {id} already, and images don't change: choose another name");
            Err(Failure::new(ProblemType::Conflict, detail))
        }
    }
}

/// Make an image of the files uploaded before
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = CreateImage,
    responses((status = 201, description = "It was made", body = ImageView)))]
async fn create_image(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    Body(create): Body<CreateImage>,
) -> Result<Response, Failure> {
    let id: ImageId = name("name", &create.name)?;
    let parts = check(&create)?;
    let staging = api.staging();
    let _turn = staging.turn().await;
    if let Some(image) = existing(&api, &id).await? {
        // Either a repetition of the request that made it, answered from memory, or a conflict: the files stay.
        let image = Image { cmdline: create.cmdline, labels: create.labels, ..only(image, &parts) };
        api.shell.submit(conditions.change(actor.clone(), Action::CreateImage { image })).await?;
        return crud::show::<Image>(&api, actor, id, StatusCode::CREATED).await;
    }
    let mut image = Image {
        id: id.clone(),
        created_at: now(),
        kernel: None,
        initrd: None,
        disk: None,
        cmdline: create.cmdline,
        labels: create.labels,
    };
    for part in &parts {
        let staged = staging.staged(&id, *part).await?;
        *slot(&mut image, *part) = Some(ImageFile { size: Bytes(staged.size_bytes), sha256: staged.sha256 });
    }
    staging.publish(&id, &parts).await?;
    if let Err(refusal) = api.shell.submit(conditions.change(actor.clone(), Action::CreateImage { image })).await {
        // Whether a change was made is not always known; only what is certainly not registered goes.
        if existing(&api, &id).await.is_ok_and(|image| image.is_none()) {
            staging.withdraw(&id).await;
        }
        return Err(refusal.into());
    }
    staging.forget(&id).await;
    crud::show::<Image>(&api, actor, id, StatusCode::CREATED).await
}

fn slot(image: &mut Image, part: ImagePart) -> &mut Option<ImageFile> {
    match part {
        ImagePart::Kernel => &mut image.kernel,
        ImagePart::Initrd => &mut image.initrd,
        ImagePart::Disk => &mut image.disk,
    }
}

/// The image without the parts that are not named.
fn only(mut image: Image, parts: &[ImagePart]) -> Image {
    for part in ImagePart::ALL.into_iter().filter(|part| !parts.contains(part)) {
        *slot(&mut image, part) = None;
    }
    image
}

/// What belongs to the image, if it can boot.
fn check(create: &CreateImage) -> Result<Vec<ImagePart>, Failure> {
    let parts: BTreeSet<ImagePart> = create.files.iter().copied().collect();
    if parts.len() != create.files.len() {
        return Err(Failure::invalid("files", "names a part twice"));
    }
    let kernel = parts.contains(&ImagePart::Kernel);
    if !kernel && !parts.contains(&ImagePart::Disk) {
        return Err(Failure::invalid("files", "an image needs a kernel, a disk, or both"));
    }
    if !kernel && parts.contains(&ImagePart::Initrd) {
        return Err(Failure::invalid("files", "an initrd needs a kernel"));
    }
    if !kernel && !create.cmdline.is_empty() {
        return Err(Failure::invalid("cmdline", "needs a kernel"));
    }
    if create.cmdline.len() > CreateImage::CMDLINE_MAX {
        let detail = format!("has at most {} bytes", CreateImage::CMDLINE_MAX);
        return Err(Failure::invalid("cmdline", detail));
    }
    if !create.cmdline.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err(Failure::invalid("cmdline", "is of visible ASCII characters and spaces"));
    }
    Ok(parts.into_iter().collect())
}

/// Remove an image that no vm uses
#[utoipa::path(delete, path = "/v1/images/{ref}", tag = "images",
    params(("ref" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove_image(
    State(api): State<Api>,
    Operator(actor): Operator,
    conditions: Conditions,
    At(id): At<ImageId>,
) -> Result<StatusCode, Failure> {
    let _turn = api.staging().turn().await;
    api.shell.submit(conditions.change(actor, Action::Remove { key: ObjectKey::of::<Image>(&id) })).await?;
    // A remembered answer may speak of an earlier image of this name.
    if existing(&api, &id).await?.is_none() {
        api.staging().withdraw(&id).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(files: &[ImagePart], cmdline: &str) -> Result<Vec<ImagePart>, Option<String>> {
        let create = CreateImage {
            name: "x".to_owned(),
            cmdline: cmdline.to_owned(),
            files: files.to_vec(),
            labels: Default::default(),
        };
        check(&create).map_err(|failure| failure.0.field)
    }

    #[test]
    fn an_image_must_be_able_to_boot() {
        use ImagePart::{Disk, Initrd, Kernel};
        assert!(create(&[Kernel, Initrd], "console=ttyS0").is_ok());
        assert!(create(&[Disk], "").is_ok());
        for (files, cmdline, field) in [
            (&[][..], "", "files"),
            (&[Initrd], "", "files"),
            (&[Disk, Initrd], "", "files"),
            (&[Kernel, Kernel], "", "files"),
            (&[Disk], "quiet", "cmdline"),
            (&[Kernel], "a\nb", "cmdline"),
        ] {
            assert_eq!(create(files, cmdline).unwrap_err().as_deref(), Some(field), "{files:?} {cmdline:?}");
        }
        assert_eq!(create(&[Kernel], &"x".repeat(1025)).unwrap_err().as_deref(), Some("cmdline"));
    }
}
