//! Forms with a file in them, as they arrive: octets in, pieces out, the file never held as a whole.
//!
//! Source: RFC 7578; RFC 2046 section 5.1.1.

/// The longest head of a part.
const LONGEST_HEAD: usize = 4096;
/// The longest boundary (RFC 2046).
const LONGEST_BOUNDARY: usize = 70;

/// What comes next in the form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A field of this name begins.
    Field(String),
    /// Octets of the field.
    Octets(Vec<u8>),
    /// The form is whole.
    End,
}

/// The form makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no form with a file in it")]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first boundary.
    Preamble,
    /// Behind a boundary.
    Boundary,
    Head,
    Body,
    End,
}

/// Takes a form apart. It holds what was pushed and not taken yet, and asks to be emptied before more is pushed.
#[derive(Debug)]
pub(super) struct Form {
    delimiter: Vec<u8>,
    held: Vec<u8>,
    at: At,
}

impl Form {
    /// A form by its `Content-Type`; nothing when that names none.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        let boundary = parameters.split(';').find_map(|one| one.trim().strip_prefix("boundary="))?.trim_matches('"');
        let sane = kind.trim().eq_ignore_ascii_case("multipart/form-data")
            && (1..=LONGEST_BOUNDARY).contains(&boundary.len())
            && boundary.bytes().all(|octet| octet.is_ascii_graphic());
        // The first boundary has no line before it: it gets one.
        sane.then(|| Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            held: b"\r\n".to_vec(),
            at: At::Preamble,
        })
    }

    /// Takes what arrived.
    pub(super) fn push(&mut self, octets: &[u8]) {
        self.held.extend_from_slice(octets);
    }

    /// The next piece; nothing when more must arrive first.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub(super) fn next(&mut self) -> Result<Option<Piece>, Malformed> {
        loop {
            match self.at {
                At::Preamble => match find(&self.held, &self.delimiter) {
                    Some(found) => {
                        self.take(found + self.delimiter.len());
                        self.at = At::Boundary;
                    }
                    None => {
                        self.take(self.held.len().saturating_sub(self.delimiter.len()));
                        return Ok(None);
                    }
                },
                At::Boundary => match self.held.get(..2) {
                    None => return Ok(None),
                    Some(b"--") => {
                        self.at = At::End;
                        return Ok(Some(Piece::End));
                    }
                    Some(b"\r\n") => {
                        // The line's end stays: a head may be empty.
                        self.at = At::Head;
                    }
                    Some(_) => return Err(Malformed),
                },
                At::Head => {
                    let Some(end) = find(&self.held, b"\r\n\r\n") else {
                        return if self.held.len() > LONGEST_HEAD { Err(Malformed) } else { Ok(None) };
                    };
                    let head = self.take(end + 4);
                    self.at = At::Body;
                    return name(&head).map(|name| Some(Piece::Field(name))).ok_or(Malformed);
                }
                At::Body => {
                    if let Some(end) = find(&self.held, &self.delimiter) {
                        let octets = self.take(end);
                        if octets.is_empty() {
                            self.take(self.delimiter.len());
                            self.at = At::Boundary;
                            continue;
                        }
                        return Ok(Some(Piece::Octets(octets)));
                    }
                    // The end may be the beginning of a boundary.
                    let sure = self.held.len().saturating_sub(self.delimiter.len());
                    return Ok((sure > 0).then(|| Piece::Octets(self.take(sure))));
                }
                At::End => {
                    self.held.clear();
                    return Ok(None);
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.held.split_off(count.min(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}

fn find(octets: &[u8], sought: &[u8]) -> Option<usize> {
    octets.windows(sought.len()).position(|window| window == sought)
}

/// The name of a field by its head.
fn name(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let quoted = disposition.split(';').find_map(|one| one.trim().strip_prefix("name="))?;
    Some(quoted.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields = Vec<(String, Vec<u8>)>;

    /// What a form holds that arrives in parts of `step` octets.
    fn read(octets: &[u8], step: usize) -> Result<(Fields, bool), Malformed> {
        let mut form = Form::of("multipart/form-data; boundary=xyz").unwrap();
        let mut fields = Fields::new();
        for part in octets.chunks(step.max(1)) {
            form.push(part);
            while let Some(piece) = form.next()? {
                match piece {
                    Piece::Field(name) => fields.push((name, Vec::new())),
                    Piece::Octets(octets) => fields.last_mut().unwrap().1.extend(octets),
                    Piece::End => return Ok((fields, true)),
                }
            }
        }
        Ok((fields, false))
    }

    fn written(fields: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut octets = Vec::new();
        for (name, value) in fields {
            let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a\"\r\n\r\n");
            octets.extend_from_slice(head.as_bytes());
            octets.extend_from_slice(value);
            octets.extend_from_slice(b"\r\n");
        }
        octets.extend_from_slice(b"--xyz--\r\n");
        octets
    }

    #[test]
    fn what_is_no_form_is_said() {
        for kind in ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "a/b; boundary=x"] {
            assert!(Form::of(kind).is_none(), "{kind}");
        }
        assert!(Form::of("Multipart/Form-Data; charset=x; boundary=\"q\"").is_some());
        assert_eq!(read(b"--xyz??", 1), Err(Malformed));
        assert_eq!(read(b"--xyz\r\nContent-Type: a/b\r\n\r\nx", 3), Err(Malformed), "a field has a name");
        assert_eq!(read(&[b"--xyz\r\n".as_slice(), &[b'a'; 9000]].concat(), 100), Err(Malformed));
    }

    proptest! {
        #[test]
        fn fields_come_back_however_they_arrive(
            fields in proptest::collection::vec(("[a-z]{1,9}", "[\r\n-xyz ]{0,40}".prop_map(String::into_bytes)), 0..4),
            step in 1..50usize,
        ) {
            prop_assume!(fields.iter().all(|(_, value)| find(value, b"\r\n--xyz").is_none() && !value.ends_with(b"\r")));
            let octets = written(&fields);
            prop_assert_eq!(read(&octets, step), Ok((fields, true)));
        }

        #[test]
        fn any_octets_are_read(octets in proptest::collection::vec(any::<u8>(), 0..300), step in 1..50usize) {
            let _ = read(&octets, step);
            let _ = read(&[b"--xyz\r\n".as_slice(), &octets].concat(), step);
        }
    }
}
