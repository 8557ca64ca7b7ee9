//! Images. Their files are uploaded one by one into a staging area, then registered together.

use crate::intent::{Image, ImageFile};
use crate::kind::{Access, Audience, Exposed, Kind, Labels, Owner};
use crate::{ImageId, Revision};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    pub id: ImageId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    pub created_at_ms: u64,
    /// Linux kernel for direct boot; without one the firmware boots from the disk.
    pub kernel: Option<ImageFileView>,
    pub initrd: Option<ImageFileView>,
    /// qcow2 backing file of every vm's disk; without one the vm has no disk.
    pub disk: Option<ImageFileView>,
    /// Kernel command line, before what drover adds for the vm.
    pub cmdline: String,
    #[serde(default)]
    pub labels: Labels,
}

impl ImageView {
    pub fn new(image: &Image, revision: Revision) -> Self {
        let file = |file: &Option<ImageFile>| file.as_ref().map(ImageFileView::from);
        Self {
            id: image.id.clone(),
            revision,
            created_at_ms: image.created_at.0,
            kernel: file(&image.kernel),
            initrd: file(&image.initrd),
            disk: file(&image.disk),
            cmdline: image.cmdline.clone(),
            labels: image.labels.clone(),
        }
    }
}

impl Kind for Image {
    const NAME: &'static str = "image";
    type Key = ImageId;

    fn key(&self) -> ImageId {
        self.id.clone()
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }

    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }
}

impl Exposed for Image {
    const TITLE: &'static str = "image";
    const PLURAL: &'static str = "images";
    const TAG: &'static str = "images";
    const ACCESS: Access = Access { read: Audience::Everyone, write: Audience::Operators };
    type Create = CreateImage;
    type View = ImageView;
    type Settings = super::OnlyLabels;
    /// Its files are uploaded first, and go when it goes.
    const CREATABLE: bool = false;
    const REMOVABLE: bool = false;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFileView {
    pub size_bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl From<&ImageFile> for ImageFileView {
    fn from(file: &ImageFile) -> Self {
        Self { size_bytes: file.size.0, sha256: file.sha256.clone() }
    }
}

/// Which file of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImagePart {
    Kernel,
    Initrd,
    Disk,
}

impl ImagePart {
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Initrd, Self::Disk];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for ImagePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a part of an image: use kernel, initrd or disk")]
pub struct BadImagePart(pub String);

impl FromStr for ImagePart {
    type Err = BadImagePart;

    fn from_str(text: &str) -> Result<Self, BadImagePart> {
        Self::ALL
            .into_iter()
            .find(|part| part.as_str() == text)
            .ok_or_else(|| BadImagePart(text.chars().take(80).collect()))
    }
}

/// A file that was uploaded and waits for [`CreateImage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StagedFile {
    pub image: ImageId,
    pub part: ImagePart,
    pub size_bytes: u64,
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    pub name: String,
    /// Kernel command line; only with a kernel.
    #[serde(default)]
    #[schema(max_length = 1024)]
    pub cmdline: String,
    /// What was staged under this name and belongs to the image: a kernel, a disk, or both.
    pub files: Vec<ImagePart>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl CreateImage {
    /// Longest command line, in bytes: the kernel's own limit is 2048 on x86, drover adds its share.
    pub const CMDLINE_MAX: usize = 1024;
}
