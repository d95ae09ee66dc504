import { grouped } from "../../base/in-words.js";
import type { ProtoRegistry } from "../../contracts/registry.js";
import { type EventBody, TrackerWorkload } from "../workload/generator.js";
import { type Answer, type Ask, bigintOf, type Comparison, type Scenario } from "./demo-scenario.js";

const TENANTS = 6;
const SEED = 1;

/** A made-up issue tracker with several tenants; the generator knows what must come out. */
export class TrackerScenario implements Scenario {
  readonly domain = "tracker";
  readonly source: string;
  readonly tenants: readonly string[];
  readonly example = "select status_category, count(*) as issues from issues group by 1 order by 2 desc";
  private readonly workload: TrackerWorkload;
  private readonly events: number;
  /** Tenants found as they should be, which need not be asked again while the others are waited for. */
  private readonly settledTenants = new Set<string>();

  constructor(registry: ProtoRegistry, events: number) {
    this.events = events;
    this.workload = new TrackerWorkload(registry, {
      seed: SEED,
      tenants: TENANTS,
      entities: Math.ceil(events / 5),
      events,
      bodyEvents: 500,
      disorder: { duplicates: 0.05, late: 0.1 },
    });
    this.tenants = this.workload.tenants;
    this.source = `a generated issue tracker (${TENANTS} tenants, ${grouped(events)} events, some late or twice)`;
  }

  *bodies(made: (fraction: number) => void): Generator<EventBody> {
    let count = 0;
    for (const body of this.workload.bodies()) {
      count += body.count;
      made(Math.min(1, count / (this.events * 1.05)));
      yield body;
    }
  }

  last(): undefined {
    return undefined;
  }

  arrived(ask: Ask): Promise<boolean> {
    return this.settled(ask);
  }

  async settled(ask: Ask): Promise<boolean> {
    for (const tenant of this.tenants) {
      if (this.settledTenants.has(tenant)) continue;
      if ((await this.differences(ask, tenant)).length > 0) return false;
      this.settledTenants.add(tenant);
    }
    return true;
  }

  async answers(ask: Ask): Promise<readonly Answer[]> {
    const busiest = this.tenants[0]!;
    const status = await ask(
      busiest,
      `select project_key, status_category, count(*), sum(story_points), count(*) filter (where due_at is not null)
       from issues group by 1, 2 order by 1, 2`,
    );
    const voted = await ask(
      busiest,
      "select key, summary, priority, status, vote_count from issues order by vote_count desc, key limit 5",
    );
    const perTenant: unknown[][] = [];
    for (const tenant of this.tenants) {
      const [issues] = await ask(tenant, "select count(*), sum(vote_count) from issues");
      const [projects] = await ask(tenant, "select count(*) from projects");
      perTenant.push([tenant, projects?.[0], issues?.[0], issues?.[1]]);
    }
    return [
      {
        title: `Work by project (${busiest})`,
        columns: ["project", "status", "issues", "story points", "with due date"],
        rows: status,
      },
      {
        title: `Most wanted (${busiest})`,
        columns: ["key", "summary", "priority", "status", "votes"],
        rows: voted,
      },
      {
        title: "Each tenant, asked alone",
        columns: ["tenant", "projects", "issues", "votes"],
        rows: perTenant,
      },
    ];
  }

  async compare(ask: Ask): Promise<Comparison> {
    const differences: string[] = [];
    let [expected, found] = [0, 0];
    for (const tenant of this.tenants) {
      differences.push(...(await this.differences(ask, tenant)));
      const totals = this.workload.totals().get(tenant)!;
      expected += totals.issues + totals.projects;
      for (const table of ["issues", "projects"]) {
        const [row] = await ask(tenant, `select count(*) from ${table}`);
        found += Number(row?.[0]);
      }
    }
    return { what: "live rows with what the generator made", expected, found, differences };
  }

  private async differences(ask: Ask, tenant: string): Promise<string[]> {
    const totals = this.workload.totals().get(tenant)!;
    const [row] = await ask(
      tenant,
      "select count(*), sum(vote_count), (select count(*) from projects) from issues",
    );
    const compared = [
      ["issues", totals.issues, row?.[0]],
      ["votes", totals.votes, row?.[1]],
      ["projects", totals.projects, row?.[2]],
    ] as const;
    return compared
      .filter(([, expected, found]) => BigInt(expected) !== bigintOf(found))
      .map(
        ([what, expected, found]) => `${tenant}: expected ${expected} ${what}, found ${String(found ?? 0)}`,
      );
  }
}
