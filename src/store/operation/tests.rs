use std::slice;

use super::*;

/// What an earlier version wrote while a snapshot got another name.
const JOURNAL: &str = r#"{"offset": 7, "old": [111, 108, 100], "new": [110, 101, 119]}"#;

fn vm_dir() -> (tempfile::TempDir, VmDir) {
    let keep = tempfile::tempdir().unwrap();
    let dir = VmDir(keep.path().to_owned());
    (keep, dir)
}

fn rename() -> Operation {
    Operation::RenameSnapshot(serde_json::from_str::<SnapshotRenames>(JOURNAL).unwrap())
}

fn all() -> [Operation; 4] {
    [Operation::Personalize, Operation::PausedByDaemon, Operation::ChangeDisk, rename()]
}

fn names(dir: &VmDir) -> Vec<String> {
    let entries = fs::read_dir(&dir.0).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_begins_is_listed_in_one_file_until_it_ends() {
    let (_keep, dir) = vm_dir();
    assert_eq!(list(&dir).unwrap(), []);
    for (count, operation) in all().into_iter().enumerate() {
        assert_eq!(begin(&dir, operation.clone()).unwrap(), None);
        assert_eq!(list(&dir).unwrap(), all()[..=count]);
        assert!(is_open(&dir, &operation).unwrap());
        assert_eq!(names(&dir), ["operation.json"]);
    }
    for (count, operation) in all().into_iter().enumerate() {
        end(&dir, &operation).unwrap();
        assert_eq!(list(&dir).unwrap(), all()[count + 1..]);
    }
    end(&dir, &Operation::ChangeDisk).unwrap();
    assert!(names(&dir).is_empty());
}

#[test]
fn a_second_begin_returns_the_first() {
    let (_keep, dir) = vm_dir();
    begin(&dir, Operation::ChangeDisk).unwrap();
    assert_eq!(begin(&dir, Operation::ChangeDisk).unwrap(), Some(Operation::ChangeDisk));
    assert_eq!(list(&dir).unwrap(), [Operation::ChangeDisk]);
}

#[test]
fn no_change_is_lost_when_many_threads_write() {
    let (_keep, dir) = vm_dir();
    std::thread::scope(|scope| {
        for operation in all() {
            let dir = &dir;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(begin(dir, operation.clone()).unwrap(), None);
                    end(dir, &operation).unwrap();
                }
                begin(dir, operation).unwrap();
            });
        }
    });
    let open = list(&dir).unwrap();
    assert!(open.len() == 4 && all().iter().all(|operation| open.contains(operation)), "{open:?}");
}

#[test]
fn each_file_of_an_earlier_version_is_an_operation_until_it_is_converted() {
    let markers =
        [("unborn", ""), ("still", ""), ("disk.changing", ""), ("snapshots.journal", JOURNAL)];
    for ((name, content), operation) in markers.into_iter().zip(all()) {
        let (_keep, dir) = vm_dir();
        fs::write(dir.0.join(name), content).unwrap();
        assert_eq!(list(&dir).unwrap(), slice::from_ref(&operation), "{name}");
        convert(&dir).unwrap();
        assert_eq!(list(&dir).unwrap(), slice::from_ref(&operation), "{name}");
        assert_eq!(names(&dir), ["operation.json"], "{name}");
        // Killed before it was removed, it is no second operation.
        fs::write(dir.0.join(name), content).unwrap();
        end(&dir, &operation).unwrap();
        assert!(names(&dir).is_empty(), "{name}");
    }
}

#[test]
fn half_a_journal_of_an_earlier_version_means_that_the_disk_was_not_touched() {
    let (_keep, dir) = vm_dir();
    fs::write(dir.0.join("snapshots.journal"), "{\"offset\": 7").unwrap();
    convert(&dir).unwrap();
    assert!(list(&dir).unwrap().is_empty() && names(&dir).is_empty());
}

#[test]
fn a_file_that_a_power_loss_has_emptied_stands_for_a_disk_in_change() {
    for content in ["", "\0\0\0\0"] {
        let (_keep, dir) = vm_dir();
        fs::write(dir.operation(), content).unwrap();
        assert_eq!(list(&dir).unwrap(), [Operation::ChangeDisk]);
        end(&dir, &Operation::ChangeDisk).unwrap();
        assert!(names(&dir).is_empty());
    }
}

#[test]
fn a_damaged_file_is_refused_with_the_next_step_and_stays() {
    let (_keep, dir) = vm_dir();
    let table = [
        ("{\"version\": 1, \"operations\": [{", "EOF"),
        ("{}", "missing field"),
        ("{\"version\": 1, \"operations\": [{\"operation\": \"fly\"}]}", "`fly`"),
        ("{\"version\": 2, \"operations\": []}", "version 2 is of a later aqfs"),
        ("hello", "expected value"),
    ];
    for (content, said) in table {
        fs::write(dir.operation(), content).unwrap();
        for refused in [
            list(&dir).map(drop),
            begin(&dir, rename()).map(drop),
            end(&dir, &Operation::ChangeDisk),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let text = error.to_string();
            assert!(text.contains(said) && text.contains("and remove the file"), "{text}");
        }
        assert_eq!(fs::read_to_string(dir.operation()).unwrap(), content);
    }
}

#[test]
fn a_list_is_written_over_another_one() {
    let (_keep, dir) = vm_dir();
    begin(&dir, Operation::ChangeDisk).unwrap();
    let length = || fs::metadata(dir.operation()).unwrap().len();
    let one = length();
    begin(&dir, Operation::Personalize).unwrap();
    let two = length();
    end(&dir, &Operation::Personalize).unwrap();
    assert!(one < two && length() == two);
    assert_eq!(list(&dir).unwrap(), [Operation::ChangeDisk]);
}
