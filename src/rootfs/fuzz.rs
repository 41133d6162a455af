//! See [`crate::fuzz`].

use super::options::{Options, Overlay, Passage};

/// What becomes of the words: no option is lost, no layer either, however it is mounted.
pub(crate) fn options(text: &str) {
    let mut lines = text.lines();
    let kind = lines.next().unwrap_or_default();
    let words: Vec<String> = lines.map(str::to_owned).collect();
    let Ok(options) = Options::parse(kind, &words) else { return };
    assert!(options.data.iter().all(|word| words.contains(word)));
    let overlay = Overlay::parse(&options.data);
    let layers = overlay.layers().count();
    if let Some(written) = overlay.written_layers() {
        assert_eq!(written.len(), layers);
    }
    let others = overlay.others().count();
    for limit in [0, 64, 4096, usize::MAX] {
        let data = match overlay.passage(limit) {
            Passage::Whole(data) | Passage::Relative { data, .. } => data,
            Passage::Staged => continue,
        };
        assert!(data.len() < limit);
        assert!(data.split(',').count() >= others);
    }
    let _ = (overlay.staged(), options.make_overlay(kind));
}
