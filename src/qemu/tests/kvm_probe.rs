//! Which accelerator is used: whether a kernel boots under it.

use super::*;

/// A kernel in the format of a bzImage whose real-mode part is `code`: `jmp` over the header,
/// then the code at 0x268.
fn write_kernel(path: &Path, code: &[u8]) {
    let mut image = vec![0; 8 << 10];
    image[0x1f1] = 1;
    image[0x1fe..0x202].copy_from_slice(&[0x55, 0xaa, 0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x02, 0x02]);
    image[0x211] = 1;
    image[0x268..0x268 + code.len()].copy_from_slice(code);
    fs::write(path, image).unwrap();
}

/// Prints a text on the serial line, then halts.
fn printer(text: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0xbe, 0x78, 0x00, 0xba, 0xf8, 0x03, 0x2e, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf7,
        0xf4,
    ];
    code.extend(text);
    code.push(0);
    code
}

#[tokio::test]
async fn a_kernel_that_prints_a_silent_one_and_none_are_told_apart() {
    use crate::qemu::kvm_probe::{BootAttempt, boot};
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    write_kernel(&kernel, &printer(b"[    0.000000] Linux version 6.1\r\n"));
    assert_eq!(boot("tcg", "max", &kernel, TIMEOUT).await, BootAttempt::Booted);
    write_kernel(&kernel, IDLE);
    let soon = Duration::from_millis(500);
    assert_eq!(boot("tcg", "max", &kernel, soon).await, BootAttempt::Silent);
    let BootAttempt::Died(line) = boot("tcg", "max", &dir.path().join("none"), TIMEOUT).await
    else {
        panic!("a kernel that is not there has booted");
    };
    assert!(line.contains("could not load kernel") || line.contains("none"), "{line}");
    let BootAttempt::Died(line) = boot("nonsense", "max", &kernel, TIMEOUT).await else {
        panic!("an accelerator that is not there was used");
    };
    assert!(line.contains("nonsense"), "{line}");
}

#[tokio::test]
async fn the_verdict_on_kvm_is_the_same_for_all_and_kept() {
    let store = tempfile::tempdir().unwrap();
    let layout = Layout::new(store.path());
    let kernel = store.path().join("kernel");
    write_kernel(&kernel, &printer(b"Linux version"));
    let qemu = Qemu::new(layout.clone(), Arc::new(OneKernel(Some(kernel))));
    let kvm = || qemu.accel(AccelChoice::Kvm, Arch::HOST);
    let (first, second) = tokio::join!(kvm(), kvm());
    match (&first, &second) {
        (Ok(a), Ok(b)) => assert_eq!((a.kind, a), (AccelKind::Kvm, b)),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
        other => panic!("two verdicts: {other:?}"),
    }
    let usable = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(layout.accel_verdict().exists(), usable);
    let later = Qemu::new(layout, Arc::new(OneKernel(None)));
    assert_eq!(later.accel(AccelChoice::Tcg, Arch::HOST).await.unwrap().kind, AccelKind::Tcg);
}

#[tokio::test]
async fn a_probe_that_cannot_be_tried_has_no_result() {
    let store = tempfile::tempdir().unwrap();
    let layout = Layout::new(store.path());
    let qemu = Qemu::new(layout.clone(), Arc::new(OneKernel(None)));
    let error = qemu.accel(AccelChoice::Kvm, Arch::HOST).await.unwrap_err();
    assert!(matches!(error, BackendError::NoAccelerator { .. }), "{error}");
    assert!(!layout.accel_verdict().exists());
}
