//! Image records: which images there are, and how they are named.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::{ChainId, Digest, ImageId};
use crate::error::{Error, Result};
use crate::oci::ImageConfig;
use crate::reference::Reference;
use crate::state::StateDir;
use crate::store::{Index, Store};

/// An image in the store; a copy of the record at the time of asking.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    /// Names with a tag, sorted.
    pub references: Vec<Reference>,
    /// Names with a digest (`repository@sha256:…`), sorted.
    pub digests: Vec<Reference>,
    pub config: ImageConfig,
    /// The config's exact bytes; `id` is their digest.
    pub raw_config: Vec<u8>,
    /// Bytes of file content in all layers together.
    pub size: u64,
    /// Bottom first.
    pub layers: Vec<ChainId>,
    /// RFC 3339, as the config says; empty where it does not.
    pub created: String,
}

/// The state file of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The exact text.
    config: String,
    /// Tagged names with the time of tagging in nanoseconds since 1970: where a power cut has left
    /// two images with one name, the later tagging holds.
    tags: BTreeMap<Reference, u64>,
    digests: BTreeSet<Reference>,
}

impl Stored {
    pub(crate) fn read(state: &StateDir, name: &str) -> Result<Stored> {
        state.read(name)
    }
}

/// What the index keeps of an image.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    stored: Stored,
    config: ImageConfig,
    pub(crate) layers: Vec<ChainId>,
}

impl Record {
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.config.rootfs.diff_ids
    }

    pub(crate) fn from_stored(stored: Stored) -> Result<Record> {
        let config = ImageConfig::parse(stored.config.as_bytes())?;
        let layers = ChainId::chain(&config.rootfs.diff_ids);
        Ok(Record {
            stored,
            config,
            layers,
        })
    }
}

/// Leaves each name with the image that got it last.
pub(crate) fn settle_names(index: &mut Index) {
    let mut latest: BTreeMap<Reference, u64> = BTreeMap::new();
    for record in index.images.values() {
        for (reference, time) in &record.stored.tags {
            let known = latest.entry(reference.clone()).or_insert(*time);
            *known = (*known).max(*time);
        }
    }
    for record in index.images.values_mut() {
        record
            .stored
            .tags
            .retain(|reference, time| latest.get(reference) == Some(time));
    }
}

fn image(index: &Index, id: &ImageId, record: &Record) -> Image {
    Image {
        id: *id,
        references: record.stored.tags.keys().cloned().collect(),
        digests: record.stored.digests.iter().cloned().collect(),
        config: record.config.clone(),
        raw_config: record.stored.config.clone().into_bytes(),
        size: record
            .layers
            .iter()
            .filter_map(|chain| index.layers.get(chain))
            .map(|layer| layer.size)
            .sum(),
        layers: record.layers.clone(),
        created: record.config.created.clone().unwrap_or_default(),
    }
}

impl Store {
    /// Records an image whose layers are all there, and names it `reference` (a tag moves from the
    /// image that had it; a digest is added). Returns when image and layers would survive a power cut.
    ///
    /// # Errors
    /// The config is no image's, or a layer is missing.
    pub fn add_image(&self, config: &[u8], reference: Option<&Reference>) -> Result<Image> {
        let id = ImageId(Digest::of(config));
        let text = std::str::from_utf8(config).map_err(|_| Error::BadConfig {
            reason: "it is not UTF-8".to_owned(),
        })?;
        let stored = Stored {
            config: text.to_owned(),
            tags: BTreeMap::new(),
            digests: BTreeSet::new(),
        };
        let record = Record::from_stored(stored)?;
        let _hold = self.hold();
        if let Some(chain) = record.layers.iter().find(|chain| !self.has_layer(chain)) {
            return Err(Error::MissingLayer { chain: *chain });
        }
        self.record_layers(&record.layers)?;
        {
            let mut index = self.index();
            if let Entry::Vacant(place) = index.images.entry(id) {
                self.image_state.write(&id.hex(), &record.stored)?;
                place.insert(record);
            }
        }
        if let Some(reference) = reference {
            self.tag(&id, reference)?;
        }
        self.image(&id)
            .ok_or_else(|| Error::NoSuchImage { name: id.to_string() })
    }

    /// All images, sorted by id.
    pub fn images(&self) -> Vec<Image> {
        let index = self.index();
        index
            .images
            .iter()
            .map(|(id, record)| image(&index, id, record))
            .collect()
    }

    pub fn image(&self, id: &ImageId) -> Option<Image> {
        let index = self.index();
        index.images.get(id).map(|record| image(&index, id, record))
    }

    /// Finds an image by id (with or without `sha256:`), unambiguous beginning of an id, `name`,
    /// `name:tag` or `name@sha256:…`. A name goes before the beginning of an id.
    pub fn resolve(&self, name: &str) -> Result<Image> {
        let index = self.index();
        let missing = || Error::NoSuchImage {
            name: name.to_owned(),
        };
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let id = match Digest::from_hex(hex) {
            Some(digest) => ImageId(digest),
            None => match find_by_name(&index, name) {
                Some(id) => id,
                None => find_by_prefix(&index, hex)?.ok_or_else(missing)?,
            },
        };
        index
            .images
            .get(&id)
            .map(|record| image(&index, &id, record))
            .ok_or_else(missing)
    }

    /// Gives `id` the name `reference` (tag, or digest; `latest` where neither is said).
    pub fn tag(&self, id: &ImageId, reference: &Reference) -> Result<()> {
        let reference = reference.clone().or_latest();
        let mut index = self.index();
        let record = index
            .images
            .get(id)
            .ok_or_else(|| Error::NoSuchImage { name: id.to_string() })?;
        let mut stored = record.stored.clone();
        if let Some(digest) = reference.digest() {
            stored.digests.insert(reference.with_digest(*digest));
        }
        let tagged = match reference.tag() {
            Some(tag) => Some(reference.with_tag(tag)?),
            None => None,
        };
        if let Some(tagged) = &tagged {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos();
            // A clock that was set back must not make the old image win.
            let before = index
                .images
                .values()
                .filter_map(|record| record.stored.tags.get(tagged))
                .max();
            let after = before.map_or(0, |time| time.saturating_add(1));
            stored
                .tags
                .insert(tagged.clone(), u64::try_from(now).unwrap_or(u64::MAX).max(after));
        }
        self.put(&mut index, id, stored)?;
        let Some(tagged) = tagged else { return Ok(()) };
        let other = index
            .images
            .iter()
            .find(|(other, record)| *other != id && record.stored.tags.contains_key(&tagged))
            .map(|(other, record)| (*other, record.stored.clone()));
        if let Some((other, mut stored)) = other {
            stored.tags.remove(&tagged);
            self.put(&mut index, &other, stored)?;
        }
        Ok(())
    }

    /// Takes a name away; the image itself stays. Returns the image as it was before.
    pub fn untag(&self, reference: &Reference) -> Result<Image> {
        let reference = reference.clone().or_latest();
        let mut index = self.index();
        let id = find(&index, &reference).ok_or_else(|| Error::NoSuchImage {
            name: reference.to_string(),
        })?;
        let record = index.images.get(&id).ok_or_else(|| Error::NoSuchImage {
            name: reference.to_string(),
        })?;
        let before = image(&index, &id, record);
        let mut stored = record.stored.clone();
        match reference.digest() {
            Some(digest) => drop(stored.digests.remove(&reference.with_digest(*digest))),
            None => drop(stored.tags.remove(&reference)),
        }
        self.put(&mut index, &id, stored)?;
        Ok(before)
    }

    /// Removes an image with all its names, and each layer that nothing else uses (these are
    /// returned). Refuses while a root is of it or it has several names, unless `force`: then roots
    /// keep their tree.
    pub fn remove_image(&self, id: &ImageId, force: bool) -> Result<Vec<ChainId>> {
        let mut index = self.index();
        let record = index
            .images
            .get(id)
            .ok_or_else(|| Error::NoSuchImage { name: id.to_string() })?;
        if !force {
            if let Some((zone, _)) = index.roots.iter().find(|(_, root)| root.image == *id) {
                return Err(Error::ImageInUse {
                    id: *id,
                    zone: zone.clone(),
                });
            }
            let count = record.stored.tags.len();
            if count > 1 {
                return Err(Error::ImageHasNames { id: *id, count });
            }
        }
        self.image_state.remove(&id.hex())?;
        index.images.remove(id);
        self.collect_layers(&mut index)
    }

    fn put(&self, index: &mut Index, id: &ImageId, stored: Stored) -> Result<()> {
        self.image_state.write(&id.hex(), &stored)?;
        if let Some(record) = index.images.get_mut(id) {
            record.stored = stored;
        }
        Ok(())
    }
}

fn find_by_name(index: &Index, name: &str) -> Option<ImageId> {
    find(index, &name.parse::<Reference>().ok()?.or_latest())
}

fn find(index: &Index, reference: &Reference) -> Option<ImageId> {
    let named = |record: &Record| match reference.digest() {
        Some(digest) => record.stored.digests.contains(&reference.with_digest(*digest)),
        None => record.stored.tags.contains_key(reference),
    };
    index
        .images
        .iter()
        .find(|(_, record)| named(record))
        .map(|(id, _)| *id)
}

fn find_by_prefix(index: &Index, prefix: &str) -> Result<Option<ImageId>> {
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut matches = index.images.keys().filter(|id| id.hex().starts_with(prefix));
    match (matches.next(), matches.next()) {
        (Some(_), Some(_)) => Err(Error::AmbiguousId {
            prefix: prefix.to_owned(),
        }),
        (found, _) => Ok(found.copied()),
    }
}
