//! Layers: read-only subvolumes, each a snapshot of its parent plus its own diff.

use serde::{Deserialize, Serialize};

use crate::digest::{ChainId, Digest};

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub chain_id: ChainId,
    pub diff_id: Digest,
    pub parent: Option<ChainId>,
    /// Bytes of file content that this layer adds.
    pub size: u64,
}
