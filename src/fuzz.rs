//! What the fuzz targets in tests/fuzz call. Only there when something is built for fuzzing.

use crate::model::Object;

/// A directory object: refused, or the only encoding of what it means.
pub fn object(bytes: &[u8]) {
    if let Ok(object) = Object::decode(bytes) {
        assert_eq!(object.encode(), bytes);
    }
}

/// The bodies that peers send.
pub fn wire(bytes: &[u8]) {
    crate::peer::fuzz(bytes);
}

/// An archive's central directory.
pub fn archive(bytes: &[u8]) {
    crate::watch::fuzz(bytes);
}
