//! Images. Their files are the server's; what is stored says which they are.

use super::{Context, Reading, Resource};
use crate::access;
use crate::interface::{Refusal, Reply};
use drover_model::event::Severity;
use drover_model::intent::Image;
use drover_model::kind::Kind;
use drover_model::v1::{ImageView, OnlyLabels};

impl Resource for Image {
    fn settings(&self) -> Option<OnlyLabels> {
        Some(OnlyLabels { labels: self.labels.clone() })
    }

    fn patch(&self, _context: &mut Context, settings: OnlyLabels) -> Result<Self, Refusal> {
        Ok(Self { labels: settings.labels, ..self.clone() })
    }

    fn view(&self, reading: Reading) -> ImageView {
        ImageView::new(self, reading.revision)
    }
}

/// Its files lie in place.
pub(crate) fn create(context: &mut Context, image: Image) -> Result<Reply, Refusal> {
    access::may_write::<Image>(context.actor)?;
    if context.control.image(&image.id).is_some() {
        let detail = format!("there is an image {} already: choose another name", image.id);
        return Err(Refusal::conflict(detail).at("name"));
    }
    if image.kernel.is_none() && image.disk.is_none() {
        return Err(Refusal::invalid("files", "an image needs a kernel or a disk to boot from".to_owned()));
    }
    let (id, key) = (image.id.clone(), image.object_key());
    let text = format!("{} created image {id}", context.actor.name);
    context.control.tables.put(image);
    context.control.tables.event(context.now, Severity::Info, key.to_string(), None, "image-created", text);
    Ok(Reply::Object(key))
}
