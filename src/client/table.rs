//! How a table is laid out for people.

use unicode_width::UnicodeWidthStr;

/// Between two columns.
const GAP: &str = "  ";
/// The last column is folded, unless it would become narrower than this.
const LEAST_WIDTH: usize = 20;

/// The lines of a table, in which the last column takes several lines where the terminal is too narrow. `numbers`: the
/// columns whose cells end at the same place. `width`: of the terminal, in characters.
pub fn laid_out<const N: usize>(rows: &[[String; N]], numbers: &[usize], width: Option<u16>) -> String {
    let widths: Vec<usize> =
        (0..N - 1).map(|at| rows.iter().map(|row| row[at].width()).max().unwrap_or(0)).collect();
    let before_last: usize = widths.iter().map(|width| width + GAP.len()).sum();
    let room = width.and_then(|width| usize::from(width).checked_sub(before_last));
    let room = room.filter(|room| *room >= LEAST_WIDTH).unwrap_or(usize::MAX);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let fill = " ".repeat(width - cell.width());
            let (left, right) = if numbers.contains(&at) { (fill.as_str(), "") } else { ("", fill.as_str()) };
            line.extend([left, cell, right, GAP]);
        }
        for part in folded(&row[N - 1], room) {
            line.push_str(&part);
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(before_last);
        }
    }
    text
}

/// A text in lines of at most so many columns, at spaces where it can be. One line at least.
fn folded(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let is_first = lines.last().is_none_or(String::is_empty);
        let taken = lines.last().map_or(0, |line| line.width());
        if !is_first && taken.saturating_add(1 + word.width()) > room {
            lines.push(String::new());
        } else if !is_first {
            lines.last_mut().expect("there is one").push(' ');
        }
        for c in word.chars() {
            let line = lines.last_mut().expect("there is one");
            if line.width() + c.to_string().width() > room {
                lines.push(c.to_string());
            } else {
                line.push(c);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_folded_at_spaces_where_they_can_be() {
        let text = "a reason of many words, and aWordThatIsLongerThanAllTheRoomThatThereIsForIt";
        assert_eq!(folded(text, usize::MAX), [text]);
        assert_eq!(folded("漢字漢字 x", 4), ["漢字", "漢字", "x"]);
        assert_eq!(folded("", 4), [""]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["ID", "NAME", "LAST"]), row(["7", "漢字", ""]), row(["10", "a", "b"])];
        assert_eq!(laid_out(&rows, &[0], None), "ID  NAME  LAST\n 7  漢字\n10  a     b\n");
    }
}
