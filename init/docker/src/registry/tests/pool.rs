//! A pool on a loop device over a sparse file.

use std::fs::File;
use std::sync::Arc;

use store::{Pool, Store, mkfs};

/// A store that is unmounted when the test ends, however it ends.
pub(crate) struct TestStore {
    store: Option<Arc<Store>>,
    pool: Option<Pool>,
    _folder: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        mkfs::write(&image, "monobloc-test").unwrap();
        let backing = File::options().read(true).write(true).open(&image).unwrap();
        let device = sys::loopdev::LoopDevice::attach(&backing)
            .expect("Cannot attach a loop device; run the tests as root on a kernel with the loop driver.");
        let pool = Pool::mount(device.path(), &folder.path().join("pool")).unwrap();
        let store = Arc::new(Store::open(&folder.path().join("pool")).unwrap());
        Self {
            store: Some(store),
            pool: Some(pool),
            _folder: folder,
        }
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        self.store.clone().unwrap()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        drop(self.store.take());
        if let Some(Err(reason)) = self.pool.take().map(Pool::unmount) {
            eprintln!("{reason}");
        }
    }
}
