//! The wire format of server-sent events (WHATWG HTML, section 9.2.6), as far as a program needs it.

use super::limits;

/// One dispatched message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Empty when none was given.
    pub event: String,
    pub data: String,
    pub id: Option<String>,
}

/// A message grew past [`limits::STREAM_MESSAGE_BYTES`], or is not UTF-8.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStream {
    #[error("a message longer than {} bytes", limits::STREAM_MESSAGE_BYTES)]
    TooLong,
    #[error("bytes that are no text")]
    NotText,
}

/// Takes the stream's bytes in any pieces and gives the messages that are complete.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last line ended in a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    message: Message,
    has_data: bool,
}

impl Parser {
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, BadStream> {
        let mut done = Vec::new();
        for &byte in bytes {
            let follows_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => done.extend(self.end_line()?),
                _ if self.line.len() + self.message.data.len() >= limits::STREAM_MESSAGE_BYTES => {
                    return Err(BadStream::TooLong);
                }
                _ => self.line.push(byte),
            }
        }
        Ok(done)
    }

    fn end_line(&mut self) -> Result<Option<Message>, BadStream> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| BadStream::NotText)?;
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            // Comments keep the connection alive; a message without data is none.
            return Ok(std::mem::take(&mut self.has_data).then_some(message));
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.has_data = true;
                self.message.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.message.event),
            "id" => self.message.id = Some(value.to_owned()),
            // Unknown fields are ignored by the standard; `retry` gives way to our own bounds.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nid: 7\nevent: event\ndata: {\"a\":\ndata: 1}\n\nretry: 5\ndata:x\n\n";

    fn expected() -> Vec<Message> {
        vec![
            Message { event: "event".to_owned(), data: "{\"a\":\n1}".to_owned(), id: Some("7".to_owned()) },
            Message { event: String::new(), data: "x".to_owned(), id: None },
        ]
    }

    #[test]
    fn messages_arrive_whole_however_the_bytes_are_cut() {
        for line_end in ["\n", "\r\n", "\r"] {
            let stream = STREAM.replace('\n', line_end);
            for size in 1..stream.len() {
                let mut parser = Parser::default();
                let got: Vec<_> = stream.as_bytes().chunks(size).flat_map(|c| parser.feed(c).unwrap()).collect();
                assert_eq!(got, expected(), "{line_end:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn an_endless_message_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 64 << 10];
        let fed = (0..).map(|_| parser.feed(&chunk)).take(64).find(Result::is_err);
        assert_eq!(fed, Some(Err(BadStream::TooLong)));
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "y".repeat(1000));
        let fed = (0..).map(|_| parser.feed(line.as_bytes())).take(2000).find(Result::is_err);
        assert_eq!(fed, Some(Err(BadStream::TooLong)));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(Parser::default().feed(b"data: \xff\n"), Err(BadStream::NotText));
    }
}
