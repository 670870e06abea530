//! A container registry on 127.0.0.1 and images for it: as much of the protocol as a pull takes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What a login is, as `Authorization` has it: `user:secret`.
const LOGIN: &str = "Basic dXNlcjpzZWNyZXQ=";

/// What is served: by path, the type and the bytes.
type Served = BTreeMap<String, (String, Vec<u8>)>;

/// The registry. Its thread ends with the test's process.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) port: u16,
    served: Arc<Mutex<Served>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (served, requests) = (Arc::<Mutex<Served>>::default(), Arc::default());
        let (all, log) = (Arc::clone(&served), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, log) = (Arc::clone(&all), Arc::clone(&log));
                thread::spawn(move || answer(&stream, &all, &log));
            }
        });
        Self { port, served, requests }
    }

    /// The source of an image in it.
    pub(crate) fn source(&self, name: &str) -> String {
        format!("oci:127.0.0.1:{}/{name}", self.port)
    }

    /// How often a layer or a configuration was fetched.
    pub(crate) fn blobs_fetched(&self) -> usize {
        self.requests.lock().expect("the log").iter().filter(|r| r.contains("/blobs/")).count()
    }

    fn put(&self, path: String, media_type: &str, bytes: Vec<u8>) {
        self.served.lock().expect("the files").insert(path, (media_type.to_owned(), bytes));
    }

    fn blob(&self, name: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        self.put(format!("/v2/{name}/blobs/{digest}"), "application/octet-stream", bytes);
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": size})
    }

    /// Adds an image of `layers`, tar files, for this host's architecture; returns its manifest.
    pub(crate) fn image(&self, name: &str, process: &Value, layers: Vec<Vec<u8>>) -> Value {
        let config = json!({"architecture": architecture(), "os": "linux", "config": process});
        let config = self.blob(name, config.to_string().into_bytes());
        let layers: Vec<_> = layers.into_iter().map(|layer| self.blob(name, layer)).collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(name, "latest", MANIFEST, &manifest);
        manifest
    }

    /// Puts a list before an image: this architecture's entry is the last one.
    pub(crate) fn list(&self, name: &str, manifest: &Value, architectures: &[&str]) {
        let text = manifest.to_string();
        let entry = |arch: &&str| {
            json!({"mediaType": MANIFEST, "digest": digest(text.as_bytes()), "size": text.len(),
                "platform": {"architecture": arch, "os": "linux"}})
        };
        let entries: Vec<_> = architectures.iter().map(entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.manifest(name, "latest", INDEX, &index);
    }

    fn manifest(&self, name: &str, tag: &str, media_type: &str, manifest: &Value) {
        let bytes = manifest.to_string().into_bytes();
        for reference in [tag.to_owned(), digest(&bytes)] {
            self.put(format!("/v2/{name}/manifests/{reference}"), media_type, bytes.clone());
        }
    }

    /// Flips a byte in the middle of each layer of an image, or in each that is served alike.
    pub(crate) fn damage(&self, digest: &str) {
        let mut served = self.served.lock().expect("the files");
        for (_, (_, bytes)) in served.iter_mut().filter(|(path, _)| path.ends_with(digest)) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
    }
}

fn answer(stream: &TcpStream, served: &Mutex<Served>, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut request, mut login) = (String::new(), false);
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            login |= line.trim().eq_ignore_ascii_case(&format!("authorization: {LOGIN}"));
        }
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        log.lock().expect("the log").push(path.clone());
        if send(stream, &path, login, served).is_err() {
            return;
        }
    }
}

fn send(
    mut stream: &TcpStream,
    path: &str,
    login: bool,
    served: &Mutex<Served>,
) -> std::io::Result<()> {
    let found = served.lock().expect("the files").get(path).cloned();
    let json = "application/json".to_owned();
    let (status, (media_type, body)) = match found {
        _ if path.starts_with("/v2/private/") && !login => {
            ("401 Unauthorized", (json, br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#.to_vec()))
        }
        Some(found) => ("200 OK", found),
        None if path == "/v2/" => ("200 OK", (json, b"{}".to_vec())),
        None => ("404 Not Found", (json, br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.to_vec())),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
         WWW-Authenticate: Basic realm=\"test\"\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Compresses a layer.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Makes a layer of files: path, mode, content.
pub(crate) fn layer(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        // `set_path` refuses what a hostile layer has.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        let is_dir = path.ends_with('/');
        header.set_entry_type(if is_dir {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// Makes a layer of the directory `dir`, which a script fills.
pub(crate) fn layer_of(dir: &Path, script: &str) -> Vec<u8> {
    fs::create_dir_all(dir).expect("a directory");
    let pack =
        format!("set -e; {script}\ntar -c --owner=0 --group=0 --numeric-owner . >../layer.tar");
    let made = Command::new("bash").arg("-c").arg(pack).current_dir(dir).status().expect("bash");
    assert!(made.success(), "the layer's script failed");
    fs::read(dir.with_file_name("layer.tar")).expect("the layer")
}
