//! Files that people bring along: clusters, recordings. Any of them may come from standard input, or compressed.

use super::Failure;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Longest text, decompressed: a cluster of 100,000 vms with its load, or days of records.
const TEXT_BYTES_MAX: u64 = 1 << 30;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The text of a file, or of standard input for `-`; what is compressed with gzip is decompressed.
pub fn text(path: &Path) -> Result<String, Failure> {
    let stdin = path == Path::new("-");
    let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let file = || {
        if stdin { Ok(Box::new(io::stdin()) as Box<dyn Read>) } else { Ok(Box::new(std::fs::File::open(path)?) as _) }
    };
    let read = file().and_then(read);
    read.map_err(|source| match source.kind() {
        // What was named can't be used as it is, whatever else may be wrong with this machine.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
            Failure::Usage(format!("{name}: {source}"))
        }
        ErrorKind::NotFound => Failure::Usage(format!("{name}: there is no such file")),
        _ => Failure::File { path: name, what: "read", source },
    })
}

fn read(file: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.starts_with(&GZIP_MAGIC) {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(TEXT_BYTES_MAX + 1).read_to_end(&mut plain)?;
        bytes = plain;
    }
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is longer than 1 GiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not text (UTF-8)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;
    use std::io::Write;

    #[test]
    fn plain_and_compressed_files_read_alike_and_others_are_bad_input() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("plain"), "host h1\n").unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"host h1\n").unwrap();
        let packed = packed.finish().unwrap();
        std::fs::write(path("packed"), &packed).unwrap();
        std::fs::write(path("broken"), &packed[..packed.len() - 9]).unwrap();
        std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
        assert_eq!(text(&path("plain")).unwrap(), "host h1\n");
        assert_eq!(text(&path("packed")).unwrap(), "host h1\n");
        for bad in ["broken", "binary", "none"] {
            let failure = text(&path(bad)).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{bad}: {failure}");
            assert!(failure.line().contains(bad), "{failure}");
        }
    }
}
