//! Layered drawing of a directed graph, top to bottom, after Sugiyama: layers by longest path, order by medians,
//! positions by least squares. Cycles cannot occur in a pipeline but may in bad data: their back edges are drawn upwards.
//!
//! Guarantee: boxes of a layer never overlap, whatever the graph.

use std::collections::HashMap;

/// Space between boxes of a layer, and between layers.
const GAP_X: f64 = 28.0;
const GAP_Y: f64 = 44.0;
/// Rounds of ordering and of placing; more change little.
const ROUNDS: usize = 12;
const PLACINGS: usize = 28;
/// Above this many boxes (with bends of long edges) ordering is skipped: it would take longer than a page may.
const ORDERED_UP_TO: usize = 3000;
/// Width that a bend of a long edge takes.
const BEND: f64 = 12.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    pub width: f64,
    pub height: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    pub x: f64,
    pub y: f64,
}

/// Centres of boxes, bends of edges (from the bottom of one box to the top of another), and the size of it all.
#[derive(Debug, Default)]
pub struct Drawing {
    pub nodes: Vec<Point>,
    pub edges: Vec<Vec<Point>>,
    pub width: f64,
    pub height: f64,
}

struct Cell {
    layer: usize,
    width: f64,
    up: Vec<usize>,
    down: Vec<usize>,
    x: f64,
}

/// Edges are pairs of indices into `sizes`; those out of range and loops are drawn as nothing.
pub fn layout(sizes: &[Size], edges: &[(usize, usize)]) -> Drawing {
    let count = sizes.len();
    if count == 0 {
        return Drawing { edges: vec![Vec::new(); edges.len()], ..Drawing::default() };
    }
    let real: Vec<(usize, usize, usize)> = edges
        .iter()
        .enumerate()
        .filter(|(_, (a, b))| *a < count && *b < count && a != b)
        .map(|(n, (a, b))| (n, *a, *b))
        .collect();
    let forward = acyclic(count, &real);
    let layer = layers(count, &forward);
    let mut cells: Vec<Cell> = sizes
        .iter()
        .zip(&layer)
        .map(|(size, layer)| Cell { layer: *layer, width: size.width, up: Vec::new(), down: Vec::new(), x: 0.0 })
        .collect();
    // Bends of each edge, from its upper end to its lower.
    let mut bends: HashMap<usize, Vec<usize>> = HashMap::new();
    for (edge, from, to) in &forward {
        let mut last = *from;
        for between in layer[*from] + 1..layer[*to] {
            let bend = cells.len();
            cells.push(Cell { layer: between, width: BEND, up: vec![last], down: Vec::new(), x: 0.0 });
            cells[last].down.push(bend);
            bends.entry(*edge).or_default().push(bend);
            last = bend;
        }
        cells[last].down.push(*to);
        cells[*to].up.push(last);
    }
    let depth = cells.iter().map(|c| c.layer).max().unwrap_or(0) + 1;
    let mut rows = vec![Vec::new(); depth];
    for start in initial_order(&cells) {
        rows[cells[start].layer].push(start);
    }
    if cells.len() <= ORDERED_UP_TO {
        order(&mut rows, &cells);
    }
    place(&rows, &mut cells);
    finish(sizes, &real, &rows, &cells, &bends, edges.len())
}

/// Edges with back edges turned round, found by depth-first search without recursion.
fn acyclic(count: usize, edges: &[(usize, usize, usize)]) -> Vec<(usize, usize, usize)> {
    let mut out = vec![Vec::new(); count];
    for (n, (_, from, to)) in edges.iter().enumerate() {
        out[*from].push((n, *to));
    }
    let mut state = vec![0u8; count];
    let mut back = vec![false; edges.len()];
    for root in 0..count {
        if state[root] != 0 {
            continue;
        }
        state[root] = 1;
        let mut stack = vec![(root, 0)];
        while let Some((node, next)) = stack.last_mut() {
            if let Some((edge, to)) = out[*node].get(*next).copied() {
                *next += 1;
                match state[to] {
                    0 => {
                        state[to] = 1;
                        stack.push((to, 0));
                    }
                    1 => back[edge] = true,
                    _ => {}
                }
            } else {
                state[*node] = 2;
                stack.pop();
            }
        }
    }
    edges.iter().zip(back).map(|((e, a, b), back)| if back { (*e, *b, *a) } else { (*e, *a, *b) }).collect()
}

fn layers(count: usize, edges: &[(usize, usize, usize)]) -> Vec<usize> {
    let mut waiting = vec![0usize; count];
    let mut out = vec![Vec::new(); count];
    for (_, from, to) in edges {
        waiting[*to] += 1;
        out[*from].push(*to);
    }
    let mut layer = vec![0; count];
    let mut ready: Vec<usize> = (0..count).filter(|n| waiting[*n] == 0).collect();
    while let Some(node) = ready.pop() {
        for to in &out[node] {
            layer[*to] = layer[*to].max(layer[node] + 1);
            waiting[*to] -= 1;
            if waiting[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    layer
}

/// Depth first from the sources: neighbours in the graph begin as neighbours in their layers.
fn initial_order(cells: &[Cell]) -> Vec<usize> {
    let mut seen = vec![false; cells.len()];
    let mut order = Vec::with_capacity(cells.len());
    let sources = (0..cells.len()).filter(|n| cells[*n].up.is_empty());
    for root in sources.chain(0..cells.len()) {
        let mut stack = vec![root];
        while let Some(node) = stack.pop() {
            if !std::mem::replace(&mut seen[node], true) {
                order.push(node);
                stack.extend(cells[node].down.iter().rev());
            }
        }
    }
    order
}

fn order(rows: &mut Vec<Vec<usize>>, cells: &[Cell]) {
    let mut best = rows.clone();
    let mut fewest = crossings(rows, cells);
    for round in 0..ROUNDS {
        if fewest == 0 {
            break;
        }
        let down = round % 2 == 0;
        let mut rank = ranks(rows, cells.len());
        let sequence: Vec<usize> =
            if down { (1..rows.len()).collect() } else { (0..rows.len().saturating_sub(1)).rev().collect() };
        for layer in sequence {
            let key = |cell: usize| {
                let neighbours = if down { &cells[cell].up } else { &cells[cell].down };
                let mut places: Vec<usize> = neighbours.iter().map(|n| rank[*n]).collect();
                places.sort_unstable();
                match places.len() {
                    0 => rank[cell] * 2,
                    n if n % 2 == 1 => places[n / 2] * 2,
                    n => places[n / 2 - 1] + places[n / 2],
                }
            };
            let mut keyed: Vec<(usize, usize)> = rows[layer].iter().map(|c| (key(*c), *c)).collect();
            keyed.sort_by_key(|(k, _)| *k);
            rows[layer] = keyed.into_iter().map(|(_, c)| c).collect();
            for (place, cell) in rows[layer].iter().enumerate() {
                rank[*cell] = place;
            }
        }
        let now = crossings(rows, cells);
        if now < fewest {
            fewest = now;
            best.clone_from(rows);
        }
    }
    *rows = best;
}

fn ranks(rows: &[Vec<usize>], count: usize) -> Vec<usize> {
    let mut rank = vec![0; count];
    for row in rows {
        for (place, cell) in row.iter().enumerate() {
            rank[*cell] = place;
        }
    }
    rank
}

/// Pairs of edges that cross, counted with a Fenwick tree over the places of the lower layer.
fn crossings(rows: &[Vec<usize>], cells: &[Cell]) -> usize {
    let rank = ranks(rows, cells.len());
    let mut total = 0;
    for pair in rows.windows(2) {
        let mut tree = vec![0usize; pair[1].len() + 1];
        let mut inserted = 0;
        for upper in &pair[0] {
            let mut targets: Vec<usize> = cells[*upper].down.iter().map(|d| rank[*d]).collect();
            targets.sort_unstable();
            for target in &targets {
                let (mut at, mut before) = (target + 1, 0);
                while at > 0 {
                    before += tree[at];
                    at &= at - 1;
                }
                total += inserted - before;
            }
            for target in targets {
                let mut at = target + 1;
                while at < tree.len() {
                    tree[at] += 1;
                    at += at & at.wrapping_neg();
                }
                inserted += 1;
            }
        }
    }
    total
}

/// Moves each layer towards its neighbours, as far as the order and the gaps allow.
fn place(rows: &[Vec<usize>], cells: &mut [Cell]) {
    for row in rows {
        let mut x = 0.0;
        for cell in row {
            cells[*cell].x = x + cells[*cell].width / 2.0;
            x += cells[*cell].width + GAP_X;
        }
        let middle = (x - GAP_X) / 2.0;
        for cell in row {
            cells[*cell].x -= middle;
        }
    }
    for round in 0..PLACINGS {
        let sequence: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for layer in sequence {
            let wanted: Vec<f64> = rows[layer].iter().map(|c| desired(*c, cells, round)).collect();
            fit(&rows[layer], &wanted, cells);
        }
    }
}

fn desired(cell: usize, cells: &[Cell], round: usize) -> f64 {
    let mean = |list: &[usize]| {
        let count = u32::try_from(list.len()).unwrap_or(u32::MAX);
        (count > 0).then(|| list.iter().map(|n| cells[*n].x).sum::<f64>() / f64::from(count))
    };
    let (up, down) = (mean(&cells[cell].up), mean(&cells[cell].down));
    // Most rounds look both ways, so that neither end of an edge is left askew.
    let both = round >= 6;
    match (up, down) {
        (Some(u), Some(d)) if both => f64::midpoint(u, d),
        (Some(u), _) if round.is_multiple_of(2) => u,
        (_, Some(d)) => d,
        (Some(u), None) => u,
        (None, None) => cells[cell].x,
    }
}

/// The positions nearest to those wanted, in squares, that keep order and distance: isotonic regression by pooling.
fn fit(row: &[usize], wanted: &[f64], cells: &mut [Cell]) {
    let mut offset = 0.0;
    let mut offsets = Vec::with_capacity(row.len());
    for (n, cell) in row.iter().enumerate() {
        if n > 0 {
            offset += (cells[row[n - 1]].width + cells[*cell].width) / 2.0 + GAP_X;
        }
        offsets.push(offset);
    }
    // Each pool: weighted sum, weight, members. Bends weigh more: a long edge should be straight.
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for ((want, offset), cell) in wanted.iter().zip(&offsets).zip(row) {
        let weight = if cells[*cell].width > BEND { 1.0 } else { 6.0 };
        let mut pool = (weight * (want - offset), weight, 1);
        while let Some(last) = pools.last().copied().filter(|last| last.0 / last.1 > pool.0 / pool.1) {
            pools.pop();
            pool = (pool.0 + last.0, pool.1 + last.1, pool.2 + last.2);
        }
        pools.push(pool);
    }
    let mut n = 0;
    for (sum, weight, members) in pools {
        for _ in 0..members {
            cells[row[n]].x = sum / weight + offsets[n];
            n += 1;
        }
    }
}

fn finish(
    sizes: &[Size],
    real: &[(usize, usize, usize)],
    rows: &[Vec<usize>],
    cells: &[Cell],
    bends: &HashMap<usize, Vec<usize>>,
    edges: usize,
) -> Drawing {
    const MARGIN: f64 = 16.0;
    let tall = |row: &Vec<usize>| row.iter().filter_map(|c| sizes.get(*c)).map(|s| s.height).fold(0.0, f64::max);
    let mut y = MARGIN;
    let mut middle = Vec::with_capacity(rows.len());
    let mut heights = Vec::with_capacity(rows.len());
    for row in rows {
        let height = tall(row);
        heights.push(height);
        middle.push(y + height / 2.0);
        y += height + GAP_Y;
    }
    let left = cells.iter().map(|c| c.x - c.width / 2.0).fold(f64::INFINITY, f64::min) - MARGIN;
    let right = cells.iter().map(|c| c.x + c.width / 2.0).fold(f64::NEG_INFINITY, f64::max) + MARGIN;
    let at = |cell: usize| Point { x: cells[cell].x - left, y: middle[cells[cell].layer] };
    let mut drawing = Drawing {
        nodes: (0..sizes.len()).map(at).collect(),
        edges: vec![Vec::new(); edges],
        width: right - left,
        height: y - GAP_Y + MARGIN,
    };
    for (edge, from, to) in real {
        let turned = cells[*from].layer > cells[*to].layer;
        // A bend runs straight through its layer, so that the curve before it does not cut the corner of a box.
        let through = |bend: &usize| {
            let (point, half) = (at(*bend), heights[cells[*bend].layer] / 2.0);
            [Point { y: point.y - half, ..point }, Point { y: point.y + half, ..point }]
        };
        let mut inner: Vec<Point> = bends.get(edge).into_iter().flatten().flat_map(through).collect();
        if turned {
            inner.reverse();
        }
        let (a, b, sign) = (at(*from), at(*to), if turned { -1.0 } else { 1.0 });
        let mut points = vec![Point { x: a.x, y: a.y + sign * sizes[*from].height / 2.0 }];
        points.extend(inner);
        points.push(Point { x: b.x, y: b.y - sign * sizes[*to].height / 2.0 });
        drawing.edges[*edge] = points;
    }
    drawing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(count: usize) -> Vec<Size> {
        vec![Size { width: 200.0, height: 50.0 }; count]
    }

    fn assert_sound(sizes: &[Size], drawing: &Drawing) {
        for (n, a) in drawing.nodes.iter().enumerate() {
            assert!(a.x - sizes[n].width / 2.0 >= 0.0 && a.x + sizes[n].width / 2.0 <= drawing.width, "{n} is outside");
            assert!(a.y - sizes[n].height / 2.0 >= 0.0 && a.y + sizes[n].height / 2.0 <= drawing.height);
            for (m, b) in drawing.nodes.iter().enumerate().skip(n + 1) {
                let apart = (a.x - b.x).abs() + 0.01 >= f64::midpoint(sizes[n].width, sizes[m].width)
                    || (a.y - b.y).abs() >= f64::midpoint(sizes[n].height, sizes[m].height);
                assert!(apart, "{n} and {m} overlap");
            }
        }
    }

    #[test]
    fn a_chain_is_straight_and_a_diamond_symmetric() {
        let d = layout(&boxes(3), &[(0, 1), (1, 2)]);
        assert!(d.nodes.iter().all(|p| (p.x - d.nodes[0].x).abs() < 0.01));
        assert!(d.nodes[0].y < d.nodes[1].y && d.nodes[1].y < d.nodes[2].y);
        let d = layout(&boxes(4), &[(0, 1), (0, 2), (1, 3), (2, 3)]);
        assert!((d.nodes[0].x - f64::midpoint(d.nodes[1].x, d.nodes[2].x)).abs() < 0.5);
        assert!((d.nodes[3].x - d.nodes[0].x).abs() < 0.5);
    }

    #[test]
    fn crossings_that_can_be_avoided_are() {
        // Two columns, given in the wrong order.
        let sizes = boxes(4);
        let d = layout(&sizes, &[(0, 3), (1, 2)]);
        assert_eq!(d.nodes[0].x < d.nodes[1].x, d.nodes[3].x < d.nodes[2].x);
        assert_sound(&sizes, &d);
    }

    #[test]
    fn long_edges_bend_round_boxes() {
        let sizes = boxes(4);
        let d = layout(&sizes, &[(0, 1), (1, 2), (2, 3), (0, 3)]);
        let bends = &d.edges[3];
        assert_eq!(bends.len(), 6);
        assert!((bends[1].x - d.nodes[1].x).abs() > 100.0, "the edge runs through a box");
        assert_sound(&sizes, &d);
    }

    #[test]
    fn nonsense_is_drawn_without_a_panic() {
        assert_eq!(layout(&[], &[(0, 1)]).edges.len(), 1);
        let sizes = boxes(3);
        for edges in
            [vec![(0, 0)], vec![(0, 9)], vec![(0, 1), (1, 0)], vec![(0, 1), (1, 2), (2, 0)], vec![(0, 1), (0, 1)]]
        {
            let d = layout(&sizes, &edges);
            assert_sound(&sizes, &d);
            assert!(d.edges.iter().flatten().all(|p| p.x.is_finite() && p.y.is_finite()));
        }
    }

    #[test]
    fn large_graphs_are_sound_and_quick() {
        let mut seed = 7u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % below
        };
        let sizes: Vec<Size> =
            (0..300).map(|n| Size { width: if n % 3 == 0 { 200.0 } else { 150.0 }, height: 50.0 }).collect();
        let edges: Vec<(usize, usize)> = (1..300).map(|n: usize| (n.saturating_sub(1 + random(12)), n)).collect();
        assert_sound(&sizes, &layout(&sizes, &edges));
        let wide: Vec<(usize, usize)> = (1..300).map(|n| (0, n)).collect();
        assert_sound(&sizes, &layout(&sizes, &wide));
    }
}
