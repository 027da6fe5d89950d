// What a page does with the service by gRPC-Web, with nothing but its descriptors.
import { createFileRegistry, fromBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const response = await fetch("bookstore.binpb");
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, new Uint8Array(await response.arrayBuffer())));
const json = (message) => toJson(registry.getMessage(message.$typeName), message, { registry });

async function failureOf(promise) {
  try {
    await promise;
    return null;
  } catch (reason) {
    const error = ConnectError.from(reason);
    const details = ["ErrorInfo", "RequestInfo", "BadRequest"].flatMap((name) =>
      error.findDetails(registry.getMessage(`google.rpc.${name}`)).map(json));
    return { code: Code[error.code], message: error.rawMessage, details, requestId: error.metadata.get("x-request-id") };
  }
}

window.session = async (baseUrl) => {
  const client = createClient(
    registry.getService("bookstore.v1.BookService"),
    createGrpcWebTransport({ baseUrl, defaultTimeoutMs: 20_000 }),
  );
  const created = await client.createBook({ book: { name: "Año Nuevo 元旦", author: "A page", releaseYear: 0 } });
  return {
    created: json(created),
    read: json(await client.getBook({ id: created.id })),
    listed: json(await client.listBooks({ filter: 'author = "A page"', pageSize: 10 })),
    invalid: await failureOf(client.createBook(
      { book: { name: " ", author: "A page" } }, { headers: { "x-request-id": "from-a-page" } })),
  };
};
