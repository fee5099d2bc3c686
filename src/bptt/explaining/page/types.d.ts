// The data that flow between the modules of the page, for `tsc` and for editors; nothing of this is in the page itself.
import type { FIELDS } from "./shell/model.js";
import type { fields as fold } from "./scenes/fold.js";
import type { fields as gradient } from "./scenes/gradient.js";
import type { fields as map } from "./scenes/map.js";
import type { fields as own } from "./scenes/own.js";
import type { fields as remedies } from "./scenes/remedies.js";
import type { fields as vanish } from "./scenes/vanish.js";
import type { fields as werbos } from "./scenes/werbos.js";

// Numbers ------------------------------------------------------------------------------------------------------------

export type Vector = number[];
/** Rows of equal length. */
export type Matrix = number[][];
export type Parameter = Vector | Matrix;
/** float64 (the identity) or float32; it follows every operation. */
export type Rounding = (value: number) => number;
/** Indexed by the lecture's steps 1..T: entry 0 is empty and never read. */
export type FromOne<T> = T[];

// The network and what the engine computes from it -------------------------------------------------------------------

export type ActivationName = "tanh" | "sigmoid" | "relu";
export type HeadName = "softmax" | "sigmoid" | "linear";
/** The weights of one step; W_hh2 is the second lag of Werbos 1990, b_hh the second bias of torch.nn.LSTM. */
export type StepParameter = "W_hx" | "W_hh" | "W_hh2" | "b_h" | "b_hh";

export interface Activation {
  /** σ_h(z) */
  value(z: number): number;
  /** σ_h′(z), from z and h = σ_h(z) */
  slope(z: number, h: number): number;
}

/** A class or a binary label as a number, or the values that a regression aims at. */
export type Target = number | Vector;

/** σ_y with the loss that belongs to it, eq. (7) and (8). */
export interface Head<T extends Target = any> {
  /** y(t) [K] */
  output(z: Vector): Vector;
  /** L(t) */
  loss(z: Vector, target: T): number;
  /** ∂L(t)/∂z_y(t) [K] */
  lossByZ(z: Vector, target: T): Vector;
  /** ∂L(t)/∂y(t) [K] */
  lossByY(y: Vector, target: T): Vector;
  /** ∂y(t)/∂z_y(t) [K, K] */
  outputByZ(z: Vector): Matrix;
}

/** [H, D], [H, H], [H] for an RNN; [4H, D], [4H, H], [4H] for an LSTM, gates in torch.nn.LSTM's order i, f, g, o. */
export interface StepParameters {
  W_hx: Matrix;
  W_hh: Matrix;
  W_hh2?: Matrix;
  b_h: Vector;
  b_hh?: Vector;
}

interface Output {
  /** [K, H] */
  W_yh: Matrix;
  /** [K] */
  b_y: Vector;
  head: HeadName;
  /** Which L(t) enter the sum L: each, or the last only. */
  counted: "each" | "last";
}

export interface RnnNetwork extends StepParameters, Output {
  cell: "rnn";
  activation: ActivationName;
}

export interface LstmNetwork extends StepParameters, Output {
  cell: "lstm";
}

export type Network = RnnNetwork | LstmNetwork;

/** What the forward pass keeps of one step. */
export interface Step {
  x: Vector;
  /** state(t−1) */
  before: Vector;
  /** net input */
  z: Vector;
  /** h(t) [H] */
  h: Vector;
  /** h(t), and whatever else the cell hands on: c(t) of an LSTM, h(t−1) with a second lag */
  state: Vector;
}

export interface RnnStep extends Step {
  /** σ_h′(z_h(t)) [H] */
  slopes: Vector;
}

export interface LstmStep extends Step {
  i: Vector;
  f: Vector;
  g: Vector;
  o: Vector;
  c: Vector;
  tanhC: Vector;
}

/** One time step and its derivative. */
export interface Cell<S extends Step = Step> {
  H: number;
  /** numbers in the state */
  width: number;
  step(x: Vector, before: Vector, round: Rounding): S;
  /** The gradient at the net input of step k, from `dState`, the one at the state of step k. */
  atNet(step: S, dState: Vector, round: Rounding): Vector;
  /** The gradient at the state of step k−1. */
  atBefore(step: S, dNet: Vector, dState: Vector, round: Rounding): Vector;
  /** What each parameter multiplies in this step, null for a bias: its immediate gradient is dNet times this. */
  inputs(step: S): Partial<Record<StepParameter, Vector | null>>;
  /** state(0) where no other is given */
  start(): Vector;
}

/** A forward pass; steps[0] holds the start h(0) alone. */
export interface Forward<S extends Step = Step> {
  T: number;
  cell: Cell<S>;
  steps: S[];
  outputs: FromOne<{ z: Vector; y: Vector }>;
  /** L(t), also where it does not count */
  losses: FromOne<number>;
  counts: FromOne<boolean>;
  /** L, the sum of those that count */
  loss: number;
  targets: FromOne<Target>;
  round: Rounding;
}

export type StepOf<N extends Network> = N extends LstmNetwork ? LstmStep : RnnStep;

/** ∂L/∂θ of every parameter, and state[t] = ∂L/∂state(t), t = 0..T. */
export interface Gradient extends StepParameters {
  W_yh: Matrix;
  b_y: Vector;
  state: Vector[];
}

/** terms[t][k], k ≤ t: the part of ∂L(t)/∂θ that passes through step k, eq. (10). */
export type Terms<P extends Parameter = Matrix> = FromOne<FromOne<P>>;

/** Sums of the terms over k (rows[t]), over t (columns[k]), over t − k = l (lags[l]), and over all. */
export interface Sums<P extends Parameter = Matrix> {
  rows: FromOne<P>;
  columns: FromOne<P>;
  lags: P[];
  total: P;
}

/** A = U diag(s) Vᵀ; where a comment says so, s holds log₁₀ of the singular values. */
export interface Decomposition {
  U: Matrix;
  s: Vector;
  V: Matrix;
}

// The state of the page ----------------------------------------------------------------------------------------------

/** A value of the state, and the text that stands for it in the address: no & = # ? or % in it. */
export interface Field<V> {
  initial: V;
  encode(value: V): string;
  /** undefined if the text is not valid */
  decode(text: string): V | undefined;
}

export type Fields = Record<string, Field<any>>;
type ValuesOf<F> = { [Name in keyof F]: F[Name] extends Field<infer V> ? V : never };

/** The first and the latest choice in a scene's question, and the one that was right; indices of its options. */
export interface Prediction {
  first: number;
  last: number;
  right: number;
}

export type Predictions = Record<string, Prediction>;

/** What all scenes share. */
export type SharedState = ValuesOf<typeof FIELDS>;

/** The whole state: what all scenes share, and the fields of each scene. It is replaced, never changed in place. */
export type State = SharedState &
  ValuesOf<typeof fold> &
  ValuesOf<typeof gradient> &
  ValuesOf<typeof map> &
  ValuesOf<typeof vanish> &
  ValuesOf<typeof remedies> &
  ValuesOf<typeof werbos> &
  ValuesOf<typeof own> & { lecture: boolean; predictions: Predictions };

export type Patch = Partial<State>;
/** Names of the fields whose values are of type V. */
export type FieldsOf<V> = { [Name in keyof State]: State[Name] extends V ? Name : never }[keyof State] & string;

/** What the engine makes of the state; gradient and terms (of W_hh) are computed when first read. */
export interface Results {
  net: RnnNetwork;
  forward: Forward<RnnStep>;
  readonly gradient: Gradient;
  readonly terms: Terms;
}

// Scenes -------------------------------------------------------------------------------------------------------------

/** A program, and the text that it prints to the last digit. */
export interface Program {
  code: string;
  prints: string;
}

/** A text, or texts and nodes. */
export type Words = string | (string | Node)[];

export interface Question {
  question: Words;
  options: string[];
}

export type AskedQuestion = Question & { scene: Scene };

export type Follower = (state: State, results: Results) => void;

/** What a scene gets of the page. */
export interface Page {
  /** of the scene */
  id: string;
  get(): State;
  set(patch: Patch | ((state: State) => Patch)): void;
  results(): Results;
  /** Calls the follower at every change, and when the scene is shown; not while it is hidden. */
  follow(follower: Follower): void;
  /** Repaints after something that is no state, such as a hover. */
  refresh(): void;
  /** What ↑ (−1) and ↓ (+1) change in lecture mode. */
  steps(patch: (state: State, by: number) => Patch): void;
  /** Tells scene 9 of a question. */
  ask(question: Question): void;
  /** What all scenes ask. */
  questions(): AskedQuestion[];
  /** The address of a scene with the state as it is. */
  address(id: string): string;
}

/** A scene, as its module exports it. */
export interface Scene {
  /** Its name in the address. */
  id: string;
  /** Its place among the scenes, 1 to 9 in the lecture's order. */
  order: number;
  /** A word for the navigation. */
  short: string;
  /** The heading. */
  title: string;
  /** Appends the scene's elements to `root`, once, when the scene is first shown. */
  mount(root: HTMLElement, page: Page): void;
  /** State of its own. */
  fields?: Fields;
  /** False where there is nothing to show: the scene is then left out. */
  exists?(): boolean;
  /** True for the scene that the page opens with, instead of the first. */
  opens?: boolean;
  /** For "Show this in PyTorch"; a test runs the code and compares. */
  pytorch?(state: State, results: Results): Program;
}

/** What the mouse or the focus is on, which is no state: it is `none` otherwise. */
export interface Pointed<V> {
  now(): V;
  at(value: V): void;
  /** Attributes of an element that stands for `value`. */
  on(value: V): Attributes;
}

// Elements -----------------------------------------------------------------------------------------------------------

/** Attributes by name, and listeners as "on" + the event's name; what is null, undefined or false is left out. */
export type Attributes = Record<string, string | number | boolean | null | undefined | ((event: any) => void)>;

type Child = Node | string | number | null | undefined;
/** Children of an element; a list among them is laid flat, null is left out. */
export type Children = (Child | Child[])[];

// The user's own network, as own.py writes it ------------------------------------------------------------------------

/** JSON knows no infinity and no NaN. */
export type JsonNumber = number | "NaN" | "Inf" | "-Inf";

/** Indices count from 0. */
export interface Own {
  /** the name of the model's class */
  model: string;
  batch: number;
  /** places in the batch */
  samples: number[];
  total: JsonNumber;
  /** of each sample; null where the loss says nothing of steps */
  losses: ({ steps: number; values: JsonNumber[] } | null)[];
  /** layers that there was no room for */
  left_out: number;
  layers: OwnLayer[];
}

/** One layer in one direction. */
export interface OwnLayer {
  name: string;
  cell: string;
  units: number;
  reverse: boolean;
  /** of the state: "h", "c" */
  components: string[];
  parameters: string[];
  samples: OwnSample[];
}

export interface OwnSample {
  steps: number;
  /** into which the steps are thinned */
  blocks: number;
  /** sentences on what is not finite or not there */
  words: string[];
  maps: Record<string, OwnMap> | null;
  products: OwnProducts | null;
}

/** The map (t, k) of one parameter. */
export interface OwnMap {
  /** the triangle in base64; see downsample.py */
  cells: string;
  lags: JsonNumber[];
  /** the lag sums through each component of the state, where it has several */
  through: Record<string, JsonNumber[]>;
  /** in steps; null where it is not known */
  horizon: number | null;
}

/** An OwnMap with its cells as numbers, and the ends of its colours. */
export interface DecodedMap {
  /** log₁₀ of the cells */
  values: Float64Array;
  /** log₁₀ of the ends of the colours */
  low: number;
  top: number;
  /** Whether cells are smaller than `low`. */
  below: boolean;
  has: { zero: boolean; NaN: boolean; infinite: boolean };
  lags: Vector;
  through: Record<string, Vector>;
  /** `through` in percent; null where nothing is left */
  shares: Record<string, (number | null)[]>;
  horizon: number | null;
}

/** Singular values of ∂s(t)/∂s(k): log10[i][j] is that of rank ranks[i] at lag lags[j]. */
export interface OwnProducts {
  t: number;
  lags: number[];
  ranks: number[];
  /** numbers in the state */
  size: number;
  log10: JsonNumber[][];
}

// The shell ----------------------------------------------------------------------------------------------------------

export interface Store {
  get(): State;
  set(patch: Patch | ((state: State) => Patch)): void;
  subscribe(listener: (state: State) => void): void;
}

export interface SceneView {
  scene: Scene;
  section: HTMLElement;
  heading: HTMLElement;
  asked: Question[];
  /** Makes the content, if it is not there yet, and brings it up to the state. */
  mount(): void;
  update(): void;
  /** Links to the scenes before and after it. */
  link(previous: Scene | undefined, next: Scene | undefined): void;
  /** One step further in the scene, in lecture mode; says whether it has steps. */
  step(by: number): boolean;
}

/** The one scene that is visible. */
export interface Shown {
  view(): SceneView;
  show(id: string, focus: boolean): void;
}

export interface PageHeader {
  node: HTMLElement;
  show(id: string): void;
  update(state: State, address: (id: string) => string): void;
}

// What scenes hand to components -------------------------------------------------------------------------------------

/** A loss step and an earlier step. */
export type Pair = [t: number, k: number];

/** Called when a part of the drawing of the network is pointed at or clicked. */
export type PickPart = (key: string, t: number, what: "enter" | "leave" | "click") => void;

/** What `networkDrawing` shows. */
export interface NetworkView {
  T: number;
  /** for a screen reader */
  label: string;
  /** 0 compact, 1 unfolded (so by default) */
  open?: number;
  /** Keys of what is lit; empty: nothing is dimmed. */
  lit?: Set<string>;
  losses?: boolean;
  lag2?: boolean;
  /** False where L(t) does not count. */
  counts?: FromOne<boolean>;
  /** Keys of edges that bear scissors. */
  cut?: Set<string>;
}

/** What `heatmap` shows. t and k are the chosen cell; all cells are counted from 0. */
export interface MapView {
  /** Changes when the picture does. */
  id: string;
  blocks: number;
  steps: number;
  /** Whether k ≥ t. */
  reverse: boolean;
  /** log₁₀ of a cell */
  at(t: number, k: number): number;
  /** log₁₀ of the ends of the colours */
  top: number;
  low: number;
  t: number;
  k: number;
  label: string;
}

/** What `lineChart` shows. */
export interface LineChart {
  /** Places of the values. */
  x: number[];
  /** The class of a line is its look; one with the name null is not in the key. */
  lines: { name: string | null; values: number[]; class: string }[];
  /** Whether values are log₁₀. */
  log: boolean;
  /** The ends of the axis, and its name. */
  first: number;
  last: number;
  axis: string;
  cursor?: number | null;
  marks?: { at: number; text: string }[];
  /** Decades below the highest value that are shown. */
  deepest?: number;
  label: string;
}

/** What `logChart` shows: values[l] is log₁₀ at lag l. Lines of kind "bound" do not widen the scale. */
export interface LogChart {
  /** The largest lag. */
  last: number;
  lines: { name: string; kind: "first" | "second" | "bound" | "other" | "dots"; values: number[] }[];
  /** A level that is marked. */
  level?: { at: number; text: string };
  /** A lag that is marked. */
  at?: number;
  label: string;
}

/** A cell of `triangleTable`: two lines of text, and a bar. */
export interface TriangleCell {
  strong: string;
  text?: string;
  /** length of the bar, 0..1 */
  share?: number;
  colour?: string;
  /** Whether it is marked. */
  among?: boolean;
  /** for a screen reader */
  label: string;
}
