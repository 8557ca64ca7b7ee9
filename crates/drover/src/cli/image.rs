//! `drover image`.

use super::Failure;
use super::confirm::confirm_removal;
use super::context::Context;
use super::output::{Columns, Output, cell, properties};
use super::show::{self, or_nothing};
use clap::{Args, Subcommand};
use drover_api::v1::{CreateImage, ImageFileView, ImagePart, ImageView};
use drover_model::intent::Image;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Upload files and make an image of them
    #[command(
        after_help = "Examples:\n  drover image create tiny --kernel vmlinuz --initrd initrd --cmdline 'console=ttyS0 quiet'\n  \
        drover image create debian --disk debian-12.qcow2"
    )]
    Create(Create),
    /// List images
    #[command(visible_alias = "list")]
    Ls,
    /// Show one image
    #[command(visible_alias = "get")]
    Show { image: String },
    /// Remove an image that no vm uses
    #[command(visible_alias = "delete")]
    Rm {
        image: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    name: String,
    /// Linux kernel for direct boot
    #[arg(long, value_name = "FILE", required_unless_present = "disk")]
    kernel: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// qcow2 file that every vm's disk is a clone of
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "", requires = "kernel")]
    cmdline: String,
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let (client, output) = (&context.client, context.output);
    match verb {
        Verb::Create(create) => create_image(context, create).await,
        Verb::Ls => output.emit(&client.of::<Image>().all().await?, |list| table(&list.items, output)),
        Verb::Show { image } => output.emit(&client.of::<Image>().get(&image).await?, describe),
        Verb::Rm { image, yes } => {
            let what = format!("image {}", image);
            confirm_removal(&what, yes)?;
            client.of::<Image>().remove(&image).await.map(drop)?;
            output.say(&format!("{what} was removed"));
            Ok(())
        }
    }
}

async fn create_image(context: &Context, create: Create) -> Result<(), Failure> {
    let given =
        [(ImagePart::Kernel, create.kernel), (ImagePart::Initrd, create.initrd), (ImagePart::Disk, create.disk)];
    let mut files = Vec::new();
    for (part, path) in given.into_iter().filter_map(|(part, path)| Some((part, path?))) {
        upload(context, &create.name, part, &path).await?;
        files.push(part);
    }
    let image = CreateImage { name: create.name, cmdline: create.cmdline, files, labels: Default::default() };
    context.output.emit(&context.client.create_image(&image).await?, describe)
}

async fn upload(context: &Context, image: &str, part: ImagePart, path: &Path) -> Result<(), Failure> {
    let size = std::fs::metadata(path)
        .map_err(|source| Failure::File { path: path.display().to_string(), what: "read", source })?
        .len();
    let watched = std::io::stderr().is_terminal();
    let bar = if watched { ProgressBar::new(size) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg:6} {bar:30} {bytes:>10} of {total_bytes:10} {bytes_per_sec}");
    bar.set_style(style.expect("the template is right"));
    bar.set_message(part.as_str());
    let moving = bar.clone();
    let staged = context.client.stage_image_file(image, part, path, move |sent| moving.set_position(sent)).await;
    bar.finish_and_clear();
    let staged = staged?;
    context.output.say(&format!("{part}: {} uploaded", show::bytes(staged.size_bytes)));
    Ok(())
}

fn file_size(file: Option<&ImageFileView>) -> String {
    or_nothing(file.map(|file| show::bytes(file.size_bytes)))
}

fn table(images: &[ImageView], output: Output) -> String {
    let mut columns = Columns::new(output, &["IMAGE", "KERNEL", "INITRD", "DISK", "CREATED"]);
    for image in images {
        columns.row([
            cell(&image.id),
            cell(file_size(image.kernel.as_ref())),
            cell(file_size(image.initrd.as_ref())),
            cell(file_size(image.disk.as_ref())),
            cell(show::time(image.created_at_ms)),
        ]);
    }
    columns.text()
}

fn describe(image: &ImageView) -> String {
    let file = |file: &Option<ImageFileView>| {
        or_nothing(file.as_ref().map(|file| format!("{}, sha256 {}", show::bytes(file.size_bytes), file.sha256)))
    };
    properties([
        ("image", image.id.to_string()),
        ("kernel", file(&image.kernel)),
        ("initrd", file(&image.initrd)),
        ("disk", file(&image.disk)),
        ("command line", image.cmdline.clone()),
        ("created", show::time(image.created_at_ms)),
        ("revision", image.revision.to_string()),
    ])
}
