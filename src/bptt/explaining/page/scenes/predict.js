// Scene 9: the questions of all scenes with what was predicted, and where to go on with a model of one's own.
import { controls, lead } from "../components/blocks.js";
import { el } from "../components/dom.js";
import { button } from "../components/inputs.js";
import { questionList } from "../components/questions.js";
/** @import { Scene } from "../types.d.ts" */

/** @type {Scene} */
export const scene = { id: "predict", order: 9, short: "Predict", title: "Predict first", mount };

// Runs as it stands; a test runs it.
const OWN = `import torch, bptt

model = torch.nn.LSTM(3, 32)
x, target = torch.randn(100, 16, 3), torch.randn(100, 16, 32)
error = lambda outputs: ((outputs - target) ** 2).sum()
with bptt.watch(model) as flow:
    error(model(x)[0]).backward()
print(*(f"{found.layer}: {found.text}" for found in flow.verdict()))
terms = bptt.gradient_map(model, x, loss=error, samples=[0])
print(terms.lags("weight_hh_l0"))  # the gradient of W_hh by t − k`;

/** @type {Scene["mount"]} */
function mount(root, page) {
  root.append(
    lead(
      "Each scene asks a question before it answers it. The answer opens with your prediction; what you " +
        "predicted stands here.",
    ),
    questionList(page),
    controls(button("Ask all again", () => page.set({ predictions: {} }))),
    el("h3", {}, "Where to go on: your own network"),
    el(
      "p",
      {},
      "The same terms, products and verdicts for a model in PyTorch: ",
      el("code", {}, "bptt.watch"),
      " looks at a training step and says whether the gradient vanishes or explodes; ",
      el("code", {}, "bptt.gradient_map"),
      " gives the map of the terms (t, k).",
    ),
    el("pre", { class: "own", tabindex: "0", "aria-label": "Program" }, el("code", {}, OWN)),
    el(
      "p",
      {},
      "On the command line, ",
      el("code", {}, "bptt train"),
      " trains a recurrent network on your data, and ",
      el("code", {}, "bptt explain RUN"),
      " opens this page on it, with a scene of its own map, products and losses.",
    ),
  );
}
