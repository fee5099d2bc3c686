// The engine's answers for one golden case; run in Node (below) and, its source unchanged, in the browser.
export function answer(modules, { net, x, targets, state0, rounding }) {
  const { cellOf, run, gradient, lossByHidden } = modules["engine/network.js"];
  const { terms, sums, chain, chainsTo, factors } = modules["engine/terms.js"];
  const { float32, float64, matMul } = modules["engine/matrix.js"];
  const { growth, reach } = modules["engine/growth.js"];
  const { sumOverPaths } = modules["engine/paths.js"];
  const { svd, singularValues } = modules["engine/svd.js"];
  const forward = run(net, x, targets, { state0, round: rounding === "float32" ? float32 : float64 });
  const T = forward.T;
  const { state, ...byParameter } = gradient(net, forward);
  const product = chain(forward, T, 0);
  const { U, s, V } = svd(product);
  const mapped = Object.fromEntries(
    Object.keys(cellOf(net).inputs(forward.steps[1])).map((name) => [name, terms(net, forward, name)]),
  );
  const added = sums(mapped.W_hh);
  return {
    h: forward.steps.slice(1).map((step) => step.h),
    y: forward.outputs.slice(1).map((output) => output.y),
    losses: forward.losses.slice(1),
    loss: forward.loss,
    gradient: byParameter,
    state: state.slice(1),
    lossByHidden: forward.losses.slice(1).map((_, i) => lossByHidden(net, forward, i + 1)),
    terms: Object.fromEntries(
      Object.entries(mapped).map(([name, all]) => [name, all.slice(1).map((row) => row.slice(1))]),
    ),
    rows: added.rows.slice(1),
    columns: added.columns.slice(1),
    lags: added.lags,
    total: added.total,
    product,
    products: chainsTo(forward, T),
    singular: singularValues(product),
    rebuilt: matMul(
      U.map((row) => row.map((value, j) => value * s[j])),
      V[0].map((_, j) => V.map((row) => row[j])),
    ),
    reach: reach(forward).map((log) => 10 ** log),
    grown:
      cellOf(net).width === 2
        ? growth(forward, 1)
            .at(-1)
            .s.map((log) => 10 ** log)
        : null,
    paths:
      net.cell === "rnn"
        ? Object.fromEntries(Object.keys(mapped).map((name) => [name, sumOverPaths(net, forward, name)]))
        : null,
    factors: net.cell === "rnn" ? factors(net, forward, T, 1) : null,
  };
}

if (globalThis.process?.argv[1] === import.meta.filename && globalThis.process) {
  const { readFileSync, writeFileSync } = await import("node:fs");
  const [page, cases, answers] = process.argv.slice(2);
  const modules = {};
  for (const name of ["network", "terms", "matrix", "svd", "growth", "paths"]) {
    modules[`engine/${name}.js`] = await import(`file://${page}/engine/${name}.js`);
  }
  writeFileSync(answers, JSON.stringify(JSON.parse(readFileSync(cases)).map((given) => answer(modules, given))));
}
