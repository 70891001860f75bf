//! What a store finds of its own when it is opened. What was never finished is removed; what was finished
//! and is damaged is made again where that can be done, and otherwise kept, told of, and not used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use sys::btrfs;

use crate::digest::{ChainId, Digest, ImageId};
use crate::error::{During, Error, Result};
use crate::image::{self, Record};
use crate::layer::Layer;
use crate::root::Root;
use crate::store::{Index, Store, names};

/// What was damaged.
#[derive(Default)]
pub(crate) struct Damage {
    /// Layers whose trees are kept, but cannot be used.
    pub(crate) layers: BTreeSet<ChainId>,
    /// Sentences.
    pub(crate) notes: Vec<String>,
}

/// A layer's parent and the digest of its archive, by the chain id that follows from both.
type Links = BTreeMap<ChainId, (Option<ChainId>, Digest)>;

impl Store {
    /// Reads layers, images and roots into the index.
    pub(crate) fn read(&self, index: &mut Index) -> Result<Damage> {
        let mut damage = Damage::default();
        let images = self.read_image_records(&mut damage)?;
        self.read_layers(index, &images, &mut damage)?;
        for (id, record) in images {
            if record.layers.iter().all(|chain| index.layers.contains_key(chain)) {
                index.images.insert(id, record);
            } else {
                damage.notes.push(format!(
                    "Image {id} is not shown, because a layer of it is missing or damaged. Pull or load it again."
                ));
            }
        }
        image::settle_names(index);
        self.read_roots(index, &mut damage)?;
        Ok(damage)
    }

    fn read_image_records(&self, damage: &mut Damage) -> Result<BTreeMap<ImageId, Record>> {
        let mut images = BTreeMap::new();
        for name in self.image_state.list()? {
            let Some(id) = Digest::from_hex(&name).map(ImageId) else {
                continue;
            };
            match image::Stored::read(&self.image_state, &name).and_then(Record::from_stored) {
                Ok(record) => drop(images.insert(id, record)),
                // Its record stays until the image comes again.
                Err(reason) => damage.notes.push(format!(
                    "Image {id} is not shown, because its record is damaged. Pull or load it again. ({reason})"
                )),
            }
        }
        Ok(images)
    }

    fn read_layers(
        &self,
        index: &mut Index,
        images: &BTreeMap<ImageId, Record>,
        damage: &mut Damage,
    ) -> Result<()> {
        let dir = self.path().join("store/layers");
        let mut links = None;
        for name in names(&dir)? {
            let whole = File::open(dir.join(&name))
                .and_then(btrfs::is_read_only)
                .unwrap_or(false);
            let chain = Digest::from_hex(&name).map(ChainId);
            let unfinished = match (self.layer_state.read::<Layer>(&name), chain) {
                (Ok(layer), Some(chain)) if whole && layer.chain_id == chain => {
                    index.add_layer(layer, true);
                    false
                }
                (Err(Error::NoSuchObject { .. }), _) | (_, None) => true,
                (_, Some(chain)) if whole => {
                    let links = links.get_or_insert_with(|| links_of(images));
                    self.mend_layer(index, chain, links, damage)?;
                    false
                }
                _ => true,
            };
            if unfinished {
                btrfs::destroy_subvolume(&self.layers, &name)
                    .during(format!("remove the unfinished layer {name}"))?;
            }
        }
        for name in self.layer_state.list()? {
            let known = Digest::from_hex(&name)
                .map(ChainId)
                .is_some_and(|chain| index.layers.contains_key(&chain) || damage.layers.contains(&chain));
            if !known {
                self.layer_state.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Makes a layer's record again, which images that have it tell all of.
    fn mend_layer(
        &self,
        index: &mut Index,
        chain: ChainId,
        links: &Links,
        damage: &mut Damage,
    ) -> Result<()> {
        let Some((parent, diff_id)) = links.get(&chain) else {
            damage.layers.insert(chain);
            damage.notes.push(format!(
                "Layer {chain} is not used, because its record is damaged. Pull or load its image again."
            ));
            return Ok(());
        };
        let layer = Layer {
            chain_id: chain,
            diff_id: *diff_id,
            parent: *parent,
            size: self.layer_content_bytes(&chain).unwrap_or_default(),
        };
        self.layer_state.write(&chain.hex(), &layer)?;
        index.add_layer(layer, true);
        damage.notes.push(format!(
            "The record of layer {chain} was damaged and was made again."
        ));
        Ok(())
    }

    fn read_roots(&self, index: &mut Index, damage: &mut Damage) -> Result<()> {
        let dir = self.path().join("store/roots");
        for name in names(&dir)? {
            match Root::read(&dir.join(&name)) {
                Some(root) if root.layer.is_none_or(|chain| index.layers.contains_key(&chain)) => {
                    index.roots.insert(name, root);
                }
                Some(root) if root.layer.is_some_and(|chain| damage.layers.contains(&chain)) => {
                    damage.notes.push(format!(
                        "The root of zone {name} is kept but cannot be used, because a layer of its image is damaged."
                    ));
                }
                _ => btrfs::destroy_subvolume(&self.roots, &name)
                    .during(format!("remove the unusable root of {name}"))?,
            }
        }
        Ok(())
    }
}

fn links_of(images: &BTreeMap<ImageId, Record>) -> Links {
    let mut links = Links::new();
    for record in images.values() {
        let mut parent = None;
        for (chain, diff_id) in record.layers.iter().zip(record.diff_ids()) {
            links.insert(*chain, (parent, *diff_id));
            parent = Some(*chain);
        }
    }
    links
}
